#!/bin/bash
# The same installs as site.yml, as one would type them: no checks, no idempotence, no proof. Runs inside a lab host.
set -euo pipefail
cd /root
export DEBIAN_FRONTEND=noninteractive
ln -s /dev/null /etc/systemd/system/prometheus-node-exporter.service
ln -s /dev/null /etc/systemd/system/prometheus.service
ln -s /dev/null /etc/systemd/system/haproxy.service
apt-get -qq update
apt-get -qq install --no-install-recommends ca-certificates curl nftables python3-venv zstd haproxy prometheus prometheus-node-exporter
rm /etc/systemd/system/prometheus.service
for user in ollama bedplate-edge bedplate-gateway litellm node-exporter bedplate-exporter bedplate-dashboard; do
  useradd --system --home-dir "/var/lib/$user" --shell /usr/sbin/nologin "$user"
done
tar -C / -xf configuration.tar
chown -R root:ollama /etc/bedplate/ollama
chown -R root:prometheus /etc/bedplate/prometheus
chown -R root:bedplate-edge /etc/bedplate/bedplate-edge
chown -R root:bedplate-gateway /etc/bedplate/bedplate-gateway
chown -R root:litellm /etc/bedplate/litellm
chown -R root:bedplate-exporter /etc/bedplate/bedplate-exporter
chown -R root:bedplate-dashboard /etc/bedplate/bedplate-dashboard
# The configuration was written for another host's address.
address=$(hostname -I | awk '{print $1}')
written=$(sed -n 's/^ *bind \([0-9.]*\):8000 .*/\1/p' /etc/bedplate/bedplate-edge/haproxy.cfg)
grep -rlF "$written" /etc/bedplate /etc/systemd/system/*.service | xargs sed -i "s/${written//./\\.}/$address/g"

mkdir -p /opt/bedplate/ollama/current
tar -C /opt/bedplate/ollama/current -xf ollama.tar.zst
ln -s /opt/bedplate/ollama/current/bin/ollama /usr/local/bin/ollama
install --directory --owner ollama --group ollama /var/lib/ollama /var/lib/ollama/models

python3 -m venv /opt/bedplate/uv
/opt/bedplate/uv/bin/pip install --quiet --require-hashes --requirement uv.txt
app() { # SERVICE LOCK [WHEEL]
  /opt/bedplate/uv/bin/uv venv --quiet --python /usr/bin/python3 "/opt/bedplate/$1/current"
  /opt/bedplate/uv/bin/uv pip install --quiet --system-certs --no-cache --no-deps --require-hashes --compile-bytecode \
    --python "/opt/bedplate/$1/current" --requirement "$2.txt"
  [ $# -lt 3 ] || /opt/bedplate/uv/bin/uv pip install --quiet --offline --no-cache --no-deps --compile-bytecode --python "/opt/bedplate/$1/current" "$3"
}
app bedplate-gateway gateway bedplate_gateway-*.whl
app litellm litellm
app bedplate-exporter exporter bedplate_exporter-*.whl
app bedplate-dashboard dashboard bedplate_dashboard-*.whl
app traffic traffic bedplate_traffic-*.whl

systemctl daemon-reload
systemctl enable --quiet bedplate.target ollama bedplate-edge bedplate-gateway litellm prometheus node-exporter bedplate-exporter bedplate-dashboard
systemctl start ollama bedplate-edge bedplate-gateway litellm prometheus node-exporter bedplate-exporter bedplate-dashboard
printf 'FROM /root/model.gguf\nPARAMETER num_ctx 4096\nPARAMETER num_thread 1\n' >Modelfile
HOME=/root ollama create smollm2:135m -f Modelfile
