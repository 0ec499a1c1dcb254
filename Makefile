# Bedplate's commands. `make help` lists them; INVENTORY= selects the machines, by default the lab.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

INVENTORY ?= inventory/lab
PYTHON ?= python3
# Empty: the key `app`, or the first of an inventory without it.
ALIAS ?=
LAB_HOST ?= bedplate

VENV := .venv
PLAY = $(VENV)/bin/ansible-playbook --inventory $(INVENTORY)
ADHOC = $(VENV)/bin/ansible --inventory $(INVENTORY) --become
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# A field of a service's row in playbooks/group_vars/all/services.yml; a verb may name the service with or without its prefix.
field = $(or $(shell $(VENV)/bin/python scripts/service.py $(1) $(2)),$(error make help lists the verbs))
EVERYWHERE := inference:gateway:monitoring

# The journal of a service, or of all.
logs = $(if $(FOLLOW),@$(call follow,$(call hosts_of,$(1)),$(call field,shown,$(1))),\
	$(ADHOC) $(call hosts_of,$(1)) -m ansible.builtin.command -a 'journalctl --no-pager --lines 50 $(addprefix --unit ,$(call field,shown,$(1)))')
hosts_of = $(if $(1),$(call field,group,$(1)),$(EVERYWHERE))
# The hosts of a group, and what scripts/follow.py prints of them. It removes the file.
follow = file=$$(mktemp); log=$$(mktemp); \
	$(PLAY) playbooks/connections.yml --extra-vars "connections_group=$(1) connections_file=$$file" >"$$log" 2>&1 \
	  || { cat "$$log" >&2; rm -f "$$file" "$$log"; exit 1; }; rm -f "$$log"; exec $(VENV)/bin/python scripts/follow.py "$$file" $(2)

step = @printf '\n\033[1m[%s] %s\033[0m %s\n' '$(1)' '$(2)' '$(3)'

##@ Lab: try it on this machine
.PHONY: up
up: ## Boot a lab host, install and verify the whole stack on it, print its addresses
	$(call step,1/5,Packages and Python environment,(usually 30 s the first time))
	lab/lab deps
	$(MAKE) install
	$(call step,2/5,Engine and model,(usually 5 minutes the first time, then nothing to do))
	lab/lab engine >/dev/null
	lab/lab model >/dev/null
	$(call step,3/5,Lab host,(usually 1 minute the first time, then 1 s))
	lab/lab up $(LAB_HOST)
	$(call step,4/5,ansible-playbook site.yml, (usually 2 minutes on a new host, 40 s where nothing changes))
	lab/lab guard
	$(VENV)/bin/ansible-playbook --inventory inventory/lab site.yml
	$(call step,5/5,Ready,)
	@$(MAKE) INVENTORY=inventory/lab lab-addresses

.PHONY: down
down: ## Remove the lab's hosts with all their data
	lab/lab down

##@ Your own machines
.PHONY: install
install: $(VENV)/.control $(VENV)/.traffic ## Create the Python environment of the playbooks and of traffic (.venv)

.PHONY: init
init: $(VENV)/.control ## Look at a machine, propose models and write inventory/mine: make init HOST=root@192.0.2.10
	@$(VENV)/bin/python scripts/init.py --inventory '$(if $(filter file,$(origin INVENTORY)),inventory/mine,$(INVENTORY))' \
	  $(if $(filter command,$(origin HOST)),--host '$(HOST)') $(if $(OPEN),--open) $(MODELS:%=--model '%') $(if $(YES),--yes)

# SOURCE= is the folder of a mirror that has the release's sha256sum.txt.
.PHONY: release
release: $(VENV)/.control ## Take a release of Ollama with its checksums into inventory/mine: make release VERSION=0.36.0
	@$(VENV)/bin/python scripts/release.py '$(VERSION)' $(SOURCE:%=--source '%') \
	  --inventory '$(if $(filter file,$(origin INVENTORY)),inventory/mine,$(INVENTORY))'

.PHONY: deploy
deploy: install ## Install or update the stack: make deploy INVENTORY=inventory/mine
	$(PLAY) site.yml

.PHONY: gpu-probe
gpu-probe: hosts ## Show the GPUs and which driver they would get, and why; changes nothing
	@$(call output,playbooks/gpu_probe.yml --tags gpu-probe --extra-vars "probe_file=$$file")

.PHONY: models
models: hosts ## Show which models fit each inference host, and why; PIN=1 shows the digests to declare
	@$(call output,playbooks/$(if $(PIN),digests.yml,models.yml --tags gpu-probe) --extra-vars "models_file=$$file")

.PHONY: verify
verify: hosts ## Check the running system
	$(PLAY) playbooks/verify.yml

.PHONY: drift
drift: hosts ## Compare the hosts with the inventory, without a request; changes nothing
	$(PLAY) playbooks/drift.yml

uninstalled = uninstall_state='$(STATE)' uninstall_confirm='$(CONFIRM)'
.PHONY: uninstall remove-host
uninstall: hosts ## Show what would be removed: make uninstall NAME=all; with CONFIRM=<bedplate_name> remove it
	$(PLAY) playbooks/uninstall.yml --extra-vars "uninstall='$(NAME)' $(uninstalled)"
remove-host: hosts ## Take a host out of the installation, also a dead one: make remove-host HOST=gpu2
	$(PLAY) playbooks/remove_host.yml --extra-vars "remove_host='$(HOST)' $(uninstalled)"

# Without hosts ansible would only print a warning and succeed. (grep -q would cause a broken pipe in ansible.)
.PHONY: hosts
hosts: install
	@$(VENV)/bin/ansible --inventory $(INVENTORY) $(EVERYWHERE) --list-hosts 2>/dev/null | grep 'hosts ([1-9]' >/dev/null \
	  || { echo 'There is no host in $(INVENTORY): run make up for the lab, or select your machines with INVENTORY=inventory/mine.' >&2; exit 1; }

##@ Day to day (add -SERVICE for one: make restart-gateway)
.PHONY: start stop restart status health logs requests
start: hosts ## Start every service
	$(ADHOC) $(EVERYWHERE) -m ansible.builtin.command -a 'systemctl start bedplate.target'
# systemctl stop bedplate.target alone does not wait for its services.
stop: hosts ## Stop every service
	$(ADHOC) $(EVERYWHERE) -m ansible.builtin.shell -a 'systemctl stop bedplate.target $$(systemctl show --value --property=ConsistsOf bedplate.target)'
restart: hosts ## Restart every service
	$(ADHOC) $(EVERYWHERE) -m ansible.builtin.shell -a 'systemctl restart bedplate.target $$(systemctl show --value --property=ConsistsOf bedplate.target)'
status: hosts ## Show the state of every service
	$(ADHOC) $(EVERYWHERE) -m ansible.builtin.command -a 'systemctl --no-pager --all list-units $(call field,shown) bedplate.target'
health: hosts ## Print the stack's health in one sentence, and the next command
	$(PLAY) playbooks/health.yml
logs: hosts ## Show the journals' last lines, FOLLOW=1: new ones; SERVICE=gateway: of one service
	$(call logs,$(SERVICE))
requests: hosts ## Show each request when it ends: key, model, wait, tokens, status
	@$(call follow,gateway,--requests)

start-%: hosts
	$(ADHOC) $(call field,group,$*) -m ansible.builtin.command -a 'systemctl start $(call field,started,$*)'
stop-%: hosts
	$(ADHOC) $(call field,group,$*) -m ansible.builtin.command -a 'systemctl stop $(call field,started,$*)'
restart-%: hosts
	$(ADHOC) $(call field,group,$*) -m ansible.builtin.command -a 'systemctl restart $(call field,started,$*)'
# systemctl status exits with up to 3 for a stopped unit, which is a result and no error.
status-%: hosts
	$(ADHOC) $(call field,group,$*) -m ansible.builtin.shell -a 'systemctl --no-pager --full status $(call field,shown,$*); [ $$? -le 3 ]'
logs-%: hosts
	$(call logs,$*)
health-%: hosts
	$(PLAY) playbooks/health.yml --extra-vars health_service=$(call field,name,$*)

# In the environment, because WHY may contain what a shell reads.
.PHONY: drain undrain
drain undrain: export DRAIN_HOST = $(value HOST)
drain: export DRAIN_WHY = $(value WHY)
drain: hosts ## Give an engine no new request, wait for the running ones: make drain HOST=gpu1 WHY="new fan"
	$(PLAY) playbooks/drain.yml
undrain: hosts ## Give an engine requests again: make undrain HOST=gpu1
	$(PLAY) playbooks/undrain.yml

##@ Keys and clients
.PHONY: env key client password ca replace-ca rotate-key lab-addresses traffic-quick smoke
env: hosts ## Print URLs and key for your shell: eval "$$(make env)"
	@$(call client,env)
key: hosts ## Print one key: make key ALIAS=batch
	@$(call client,key)
client: hosts ## Print what a program needs to use the API: make client CLIENT=codex ALIAS=app
	@$(call client,program client_program='$(CLIENT)')
password: hosts ## Print the password of dashboard, Prometheus and Alertmanager
	@$(call client,password)
ca: hosts ## Print how clients trust the installation's own CA
	@$(call client,ca)
replace-ca: hosts ## Replace the installation's own CA; every client then needs the new one
	$(PLAY) playbooks/replace_ca.yml --tags edge
rotate-key: hosts ## Replace a key's secret, the old one expires in 24 h: make rotate-key ALIAS=batch
	$(if $(ALIAS),,$(error name the key: make rotate-key ALIAS=batch))
	$(PLAY) site.yml --tags keys --extra-vars gateway_rotate=$(ALIAS)
lab-addresses: hosts
	@$(call client,addresses)
traffic-quick: hosts ## Send three chat requests as a client does
	$(PLAY) playbooks/traffic.yml
smoke: hosts ## Load the stack: checks rate limits and priorities (2 minutes)
	$(PLAY) playbooks/smoke.yml

# The playbook writes into a private file, so that only the result is printed on standard output.
output = file=$$(mktemp); log=$$(mktemp); trap 'rm -f "$$file" "$$log"' EXIT; \
	$(PLAY) $(1) >"$$log" 2>&1 || { cat "$$log" >&2; exit 1; }; cat "$$file"
client = $(call output,playbooks/client.yml --extra-vars "client_file=$$file client_form=$(1) client_key=$(ALIAS)")

##@ Development
# Each is a small file in scripts/, which its README lists.
.PHONY: lint unit lab-ready browser lab-test molecule test test-all clients bench-gateway bench-traffic bench-dashboard lock outdated audit
lint: $(VENV)/.dev ## Every linter, no findings allowed
	scripts/lint
unit: $(VENV)/.dev ## Unit tests; they need no host
	pytest
lab-ready:
	scripts/lab-ready
browser:
	scripts/browser
lab-test: $(VENV)/.dev lab-ready ## Tests of the lab, on hosts that it boots
	pytest tests/lab
molecule: $(VENV)/.dev lab-ready browser ## Scenario tests, on lab hosts with the real services
	scripts/molecule
test: $(VENV)/.dev ## All linters and tests
	scripts/test
test-all: test ## Also the slow tests (4 hours): driver packages, faults on Debian 12, an hour of load
	scripts/test-all
clients: $(VENV)/.dev ## Real client programs against the gateway with the lab's Ollama
	scripts/clients
bench-gateway: $(VENV)/.dev ## Compare the gateway with stock LiteLLM, into bench/gateway.md (2 hours; ROWS="tpm labels" for some)
	scripts/bench gateway $(ROWS)
bench-traffic: $(VENV)/.dev ## Compare traffic with aiperf, guidellm and locust, into bench/traffic.md (8 minutes; TOOLS=locust for one)
	scripts/bench traffic $(TOOLS)
bench-dashboard: $(VENV)/.dev ## Measure the dashboard's page size, first paint and 200 viewers, into bench/dashboard.md (8 minutes)
	scripts/bench dashboard
lock: $(VENV)/.control ## Update the lock files of requirements/ and bench/requirements/
	scripts/lock
outdated: $(VENV)/.control ## List locked packages that have a newer release
	scripts/outdated
audit: $(VENV)/.control ## List locked packages that have a known vulnerability
	scripts/audit

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} /^[a-z-]+:.*## / {gsub(/\$$\$$/, "$$"); printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\n%s\n' 'INVENTORY=inventory/mine selects your machines; without it, commands apply to the lab.'

$(VENV)/.control: requirements/control.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Bedplate needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || apt-get install --yes --no-install-recommends python3-venv >&2
	@echo 'creating the Python environment $(VENV)' >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/control.txt
	@touch $@

# Editable, so that it follows the sources; uv builds it without the network, pip would download the build backend.
$(VENV)/.traffic: requirements/traffic.txt traffic/pyproject.toml $(VENV)/.control
	@echo 'installing the command traffic into $(VENV)' >&2
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/traffic.txt
	@$(VENV)/bin/uv pip install --quiet --offline --no-deps --python $(VENV) --editable ./traffic
	@touch $@

# After .traffic: the development lock may have other versions of traffic's dependencies, and they win.
$(VENV)/.dev: requirements/dev.txt $(wildcard */pyproject.toml) $(VENV)/.control $(VENV)/.traffic
	$(VENV)/bin/uv pip install --quiet --system-certs --python $(VENV) --require-hashes --requirement requirements/dev.txt
	$(VENV)/bin/uv pip install --quiet --offline --no-deps --python $(VENV) $(addprefix --editable ./,exporter gateway dashboard_app lab)
	touch $@
