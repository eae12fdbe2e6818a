#!/bin/sh
# Make the secrets of compose.yaml, once. The containers read the files as other users, so the files are readable,
# and the directory is not: nobody but its owner can enter it.
set -eu
cd "$(dirname "$0")"
umask 022
mkdir -m 700 secrets
database=$(openssl rand -hex 24)
valkey=$(openssl rand -hex 24)
printf '%s' "$(openssl rand -hex 32)" >secrets/secret_key
printf '%s' "$(openssl rand -hex 24)" >secrets/metrics_token
printf '%s' "$database" >secrets/database_password
printf '%s' "postgres://proxyhealth:$database@postgres:5432/proxyhealth" >secrets/database_url
printf '%s' "redis://:$valkey@valkey:6379/0" >secrets/redis_url
cat >secrets/valkey_conf <<CONF
requirepass $valkey
maxmemory 256mb
maxmemory-policy noeviction
save ""
appendonly no
CONF
