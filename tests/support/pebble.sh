#!/bin/bash
# Starts pebble, an ACME directory for tests, with names that lead to this host. It rejects nonces, checks each name anew and slowly.
export DEBIAN_FRONTEND=noninteractive
# playbooks/hosts.yml, which the test leaves out, would install lego.
{ command -v pebble && command -v lego; } >/dev/null || { apt-get update -q; apt-get install -y -q --no-install-recommends pebble lego; } >/dev/null 2>&1
mkdir -p /srv/pebble
cd /srv/pebble || exit
grep -q acme.test /etc/hosts || echo "$(hostname -I | cut -d' ' -f1) llm.acme.test chat.acme.test" >>/etc/hosts
new=(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9)
"${new[@]}" -subj "/CN=CA of the directory" -keyout ca.key -out ca.crt 2>/dev/null
"${new[@]}" -subj /CN=directory -CA ca.crt -CAkey ca.key -addext subjectAltName=IP:127.0.0.1 \
  -addext basicConstraints=critical,CA:FALSE -keyout server.key -out server.crt 2>/dev/null
cat >config.json <<'EOF'
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "httpPort": 80, "tlsPort": 443,
            "certificate": "/srv/pebble/server.crt", "privateKey": "/srv/pebble/server.key"}}
EOF
systemctl stop pebble fake-directory 2>/dev/null || true
systemd-run --quiet --unit=pebble --collect --working-directory=/srv/pebble --setenv=PEBBLE_WFE_NONCEREJECT=20 --setenv=PEBBLE_AUTHZREUSE=0 \
  --setenv=PEBBLE_VA_SLEEPTIME=1 pebble -config config.json
curl --silent --fail --retry 10 --retry-delay 1 --retry-connrefused --cacert ca.crt --output root.crt https://127.0.0.1:15000/roots/0
cat ca.crt root.crt
