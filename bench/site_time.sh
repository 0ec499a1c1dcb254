#!/bin/bash
# Times site.yml on a clean lab host and again where nothing changes, beside a bare shell script that does the
# same installs on the same kind of host. Needs the lab (make up once). Writes bench/site_time.md.
set -euo pipefail
cd "$(dirname "$0")/.."
export BEDPLATE_LAB=bench
suite=${1:-trixie}
ansible=(.venv/bin/ansible-playbook --inventory inventory/lab)
work=$(mktemp -d)
trap 'rm -rf "$work"; lab/lab down' EXIT

seconds() { # NAME COMMAND...: run the command, remember how long it took
  local name=$1 start=$EPOCHREALTIME
  shift
  "$@" >"$work/$name.log" 2>&1 || { tail -n 20 "$work/$name.log"; exit 1; }
  awk -v name="$name" -v from="$start" -v to="$EPOCHREALTIME" 'BEGIN { printf "%-28s %6.1f s\n", name, to - from }' | tee -a "$work/times"
}

lab/lab down
lab/lab up site --suite "$suite"
seconds site_clean "${ansible[@]}" site.yml
seconds site_no_op "${ansible[@]}" site.yml
seconds site_check "${ansible[@]}" site.yml --check --diff
seconds verify_alone "${ansible[@]}" playbooks/verify.yml

# The shell script gets for nothing what Ansible had to render: units, configuration, wheels, archive, model.
bundle=$work/bundle
mkdir -p "$bundle"
engine=$(lab/lab engine 2>/dev/null | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["archive"])')
model=$(lab/lab model 2>/dev/null | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["path"])')
cp "$engine" "$bundle/ollama.tar.zst"
cp "$model" "$bundle/model.gguf"
cp requirements/*.txt roles/bedplate/files/uv.txt dist/*/*.whl bench/bare_install.sh "$bundle/"
lab/lab exec site tar -C / -cf - etc/bedplate opt/bedplate/litellm/start.py etc/systemd/system/{bedplate.target,ollama.service,ollama-preload.service,bedplate-gateway.service,litellm.service,prometheus.service,node-exporter.service,bedplate-exporter.service,bedplate-dashboard.service} >"$bundle/configuration.tar"
lab/lab down site

lab/lab up bare --suite "$suite"
tar -C "$bundle" -cf - . | lab/lab exec bare tar -C /root -xf -
seconds bare_shell_script lab/lab ssh bare bash /root/bare_install.sh

{
  echo "# site.yml beside a bare shell script"
  echo
  echo "\`bench/site_time.sh $suite\`, $(nproc) cores, $(date -u +%F); one run each, packages fetched in all of them."
  echo
  echo '```'
  cat "$work/times"
  echo '```'
} >bench/site_time.md
