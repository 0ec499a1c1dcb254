#!/bin/bash
# Times site.yml on a clean lab host and again where nothing changes, beside a bare shell script that does the same installs on
# the same kind of host: site_time.sh [SUITE] [ROUNDS]. Needs the lab (make up once). Writes bench/site_time.md.
set -euo pipefail
cd "$(dirname "$0")/.."
export BEDPLATE_LAB=bench
suite=${1:-trixie}
rounds=${2:-3}
ansible=(.venv/bin/ansible-playbook --inventory inventory/lab)
work=$(mktemp -d)
trap 'rm -rf "$work"; lab/lab down' EXIT

seconds() { # NAME COMMAND...: run the command, remember how long it took
  local name=$1 start=$EPOCHREALTIME
  shift
  "$@" >"$work/$name.log" 2>&1 || { tail -n 20 "$work/$name.log"; exit 1; }
  awk -v name="$name" -v from="$start" -v to="$EPOCHREALTIME" 'BEGIN { printf "%s %.1f\n", name, to - from }' | tee -a "$work/times"
}

# The shell script gets for nothing what Ansible had to render: units, configuration, wheels, archive, model.
make_bundle() {
  local engine model
  mkdir -p "$work/bundle"
  engine=$(lab/lab engine 2>/dev/null | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["archive"])')
  model=$(lab/lab model 2>/dev/null | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["path"])')
  cp "$engine" "$work/bundle/ollama.tar.zst"
  cp "$model" "$work/bundle/model.gguf"
  cp requirements/*.txt roles/bedplate/files/uv.txt bench/bare_install.sh "$work/bundle/"
  for package in gateway exporter dashboard_app traffic; do
    .venv/bin/uv build --quiet --offline --wheel --out-dir "$work/bundle" "$package"
  done
  lab/lab exec site tar -C / -cf - etc/bedplate opt/bedplate/litellm/start.py etc/systemd/system/{bedplate.target,ollama.service,ollama-preload.service,bedplate-edge.service,bedplate-gateway.service,litellm.service,prometheus.service,node-exporter.service,bedplate-exporter.service,bedplate-dashboard.service} >"$work/bundle/configuration.tar"
}

lab/lab down
for ((round = 1; round <= rounds; round++)); do
  lab/lab up site --suite "$suite"
  seconds site_clean "${ansible[@]}" site.yml
  seconds site_no_op env ANSIBLE_CALLBACK_PLUGINS=bench/callback_plugins ANSIBLE_CALLBACKS_ENABLED=task_times \
    BEDPLATE_TASK_TIMES="$work/profile" "${ansible[@]}" site.yml
  seconds site_check "${ansible[@]}" site.yml --check --diff
  seconds verify_alone "${ansible[@]}" playbooks/verify.yml
  make_bundle
  lab/lab down site

  lab/lab up bare --suite "$suite"
  tar -C "$work/bundle" -cf - . | lab/lab exec bare tar -C /root -xf -
  seconds bare_shell_script lab/lab ssh bare bash /root/bare_install.sh
  lab/lab down bare
done

{
  echo "# site.yml beside a bare shell script"
  echo
  echo "\`bench/site_time.sh $suite $rounds\`, $(nproc) cores, $(date -u +%F), commit $(git rev-parse --short HEAD); packages fetched in all runs."
  echo "Seconds, and the median in units of the bare script."
  echo
  .venv/bin/python - "$work/times" <<'PYTHON'
import statistics
import sys
from pathlib import Path

times: dict[str, list[float]] = {}
for line in Path(sys.argv[1]).read_text().splitlines():
    name, seconds = line.split()
    times.setdefault(name, []).append(float(seconds))
bare = statistics.median(times["bare_shell_script"])
print("| run | least | median | most | x bare |\n|---|---|---|---|---|")
for name, all_seconds in times.items():
    median = statistics.median(all_seconds)
    print(f"| {name} | {min(all_seconds)} | {median:.1f} | {max(all_seconds)} | {median / bare:.1f} |")
PYTHON
  echo
  echo "Where the last run without changes spent its time:"
  echo
  cat "$work/profile"
} >bench/site_time.md
