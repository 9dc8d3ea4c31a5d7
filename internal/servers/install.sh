#!/usr/bin/env bash
# Puts the real servers that the tests start into a cache directory. Run it again at any time: it does
# only what is missing, prints nothing when nothing is, and repairs what an interrupted run left behind.
#
#   internal/servers/install.sh            everything
#   LAG_MONITOR_TEST_SERVERS=DIR install.sh   somewhere else than ~/.cache/lag-monitor/servers
#
# Each server gets one directory DIR/NAME, made under a temporary name and renamed. Its file .stamp, written
# last, holds what it was made from, so a changed pin installs again. No system service is ever started.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${LAG_MONITOR_TEST_SERVERS:-$HOME/.cache/lag-monitor/servers}
kinesis_version=0.6.2
grafana_schema='@grafana/schema@13.2.3 ts-json-schema-generator@2.4.0 ajv@8.17.1'
# Raise a recipe's number when its steps change, so that what an older one made is made again.
kafka_recipe=2 kinesis_recipe=1 grafana_recipe=1 prometheus_recipe=2 redis_recipe=1 browser_recipe=1 rabbitmq_recipe=1 moto_recipe=1 mosquitto_recipe=1 postgres_recipe=1

die() { echo "install.sh: $*" >&2; exit 1; }
say() { echo "install.sh: $*" >&2; }

# tool COMMAND PACKAGE...: COMMAND must be in PATH; as root on Debian it is installed, else its absence is named.
apt_updated=
tool() {
  local command=$1; shift
  command -v "$command" >/dev/null && return
  command -v apt-get >/dev/null || die "'$command' is not in PATH: install it and run this again"
  [ "$(id -u)" = 0 ] || die "'$command' is not in PATH: run 'apt-get install $*' as root, or install it otherwise, and run this again"
  say "installing $* for '$command'"
  [ -n "$apt_updated" ] || { apt-get -qq update || say "apt-get update had errors, going on with the lists there are"; apt_updated=1; }
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >"$dir/.apt.log" 2>&1 ||
    { tail -n 20 "$dir/.apt.log" >&2; die "apt-get install $* did not work, see above"; }
  command -v "$command" >/dev/null || die "'$command' is still not in PATH after installing $*"
}

# fresh NAME STAMP: whether DIR/NAME was made from STAMP.
fresh() { [ -f "$dir/$1/.stamp" ] && [ "$(<"$dir/$1/.stamp")" = "$2" ]; }

# begin NAME: an empty directory $tmp to build NAME in.  place NAME: puts it where it belongs.
# finish NAME STAMP: declares it complete.
begin() { say "installing $1 into $dir/$1"; tmp=$dir/.new-$1; rm -rf "$tmp"; mkdir -p "$tmp"; }
place() { rm -rf "${dir:?}/$1"; mv "$tmp" "$dir/$1"; }
finish() { printf '%s\n' "$2" >"$dir/$1/.stamp"; }

kafka() { # NAME
  local name=$1 pom=$here/$1/pom.xml version stamp
  version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$pom")
  stamp="kafka $version recipe $kafka_recipe $(cksum <"$pom")"
  fresh "$name" "$stamp" && return
  tool java default-jre-headless
  tool mvn maven
  begin "$name"
  cp "$pom" "$tmp/pom.xml"
  mvn -q -B -f "$tmp/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies -DoutputDirectory="$tmp/libs" >"$tmp/mvn.log" 2>&1 ||
    { grep -m 10 ERROR "$tmp/mvn.log" >&2; die "maven could not get Kafka $version, see above"; }
  # A formatted, empty data directory: tests copy it, which saves a JVM start (0.8 s) each.
  cat >"$tmp/format.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:19093
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:19092,CONTROLLER://127.0.0.1:19093
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$tmp/formatted
EOF
  java -XX:TieredStopAtLevel=1 -cp "$tmp/libs/*" kafka.tools.StorageTool format \
    -t 4L6g3nShT-eMCtK--X86sw -c "$tmp/format.properties" >"$tmp/format.log" 2>&1 ||
    { tail -n 20 "$tmp/format.log" >&2; die "Kafka $version could not format its storage, see above"; }
  [ -f "$tmp/formatted/meta.properties" ] || die "Kafka $version formatted nothing"
  printf '%s\n' "$version" >"$tmp/version"
  place "$name"
  share_classes "$dir/$name"
  finish "$name" "$stamp"
}

# share_classes HOME: starts the broker once and keeps what the JVM learned about its classes, which takes a
# third off the CPU time of each later start. The archive is good for this JVM and this path only; the JVM
# ignores it otherwise, so that it may as well be missing.
share_classes() {
  local home=$1 port=$((12000 + RANDOM % 3000)) run pid up=
  run=$home/.first
  mkdir "$run"
  cp -r "$home/formatted" "$run/data"
  sed -e "s|^log.dirs=.*|log.dirs=$run/data|" -e "s|19093|$((port + 3000))|" -e "s|19092|$port|" \
    "$home/format.properties" >"$run/server.properties"
  echo "inter.broker.listener.name=PLAINTEXT" >>"$run/server.properties"
  java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit="$home/classes.jsa" \
    -cp "$home/libs/*" kafka.Kafka "$run/server.properties" >"$run/log" 2>&1 9>&- &
  pid=$!
  for _ in {1..300}; do
    kill -0 "$pid" 2>/dev/null || break
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then up=1; break; fi
    sleep 0.1
  done
  kill "$pid" 2>/dev/null || true
  wait "$pid" || true
  [ -n "$up" ] || { tail -n 20 "$run/log" >&2; say "the broker in $home did not start, see above; its tests will tell"; }
  rm -rf "$run"
}

# packages DIR PACKAGE@VERSION...: installs npm packages into DIR/node_modules, at exact versions and without running what they bring.
packages() {
  local into=$1; shift
  tool node nodejs
  tool npm npm
  echo '{"private":true}' >"$into/package.json"
  (cd "$into" && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error --save-exact "$@" >npm.log 2>&1) ||
    { tail -n 20 "$into/npm.log" >&2; die "npm could not get $*, see above"; }
}

kinesis() {
  local stamp="kinesis-local $kinesis_version recipe $kinesis_recipe"
  fresh kinesis "$stamp" && return
  begin kinesis
  packages "$tmp" "kinesis-local@$kinesis_version"
  [ -f "$tmp/node_modules/kinesis-local/main.js" ] || die "kinesis-local $kinesis_version has no main.js"
  printf '%s\n' "$kinesis_version" >"$tmp/version"
  place kinesis
  finish kinesis "$stamp"
}

# No server: the types of Grafana's dashboards, and what holds a file against them.
grafana() {
  local stamp="$grafana_schema recipe $grafana_recipe"
  fresh grafana "$stamp" && return
  begin grafana
  # shellcheck disable=SC2086 # a list
  packages "$tmp" $grafana_schema
  place grafana
  finish grafana "$stamp"
}

# unpack PACKAGE...: Debian's packages, downloaded and unpacked into $tmp, not installed: installing them would start their services.
# It fails where there is no apt-get.
unpack() {
  local deb
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return
  (cd "$tmp" && { apt-get download "$@" >apt.log 2>&1 ||
    { [ "$(id -u)" = 0 ] && apt-get -qq update >>apt.log 2>&1 && apt-get download "$@" >>apt.log 2>&1; }; }) ||
    { tail -n 20 "$tmp/apt.log" >&2; die "apt-get could not download $*, see above (as root: apt-get update)"; }
  for deb in "$tmp"/*.deb; do dpkg -x "$deb" "$tmp" && rm "$deb" || die "dpkg could not unpack ${deb##*/}"; done
}

# Prometheus and Alertmanager, unpacked. Elsewhere binaries that are already in PATH are linked.
prometheus() {
  local stamp="prometheus recipe $prometheus_recipe" binary alertmanager
  fresh prometheus "$stamp" && return
  begin prometheus
  mkdir "$tmp/bin"
  if unpack prometheus prometheus-alertmanager; then
    for binary in prometheus promtool amtool; do ln -s "../usr/bin/$binary" "$tmp/bin/$binary"; done
    with_templates
  else
    for binary in prometheus promtool amtool; do
      command -v "$binary" >/dev/null || die "'$binary' is not in PATH and there is no apt-get to fetch it with: install Prometheus and Alertmanager"
      ln -s "$(command -v "$binary")" "$tmp/bin/$binary"
    done
    alertmanager=$(command -v alertmanager || command -v prometheus-alertmanager) || die "'alertmanager' is not in PATH"
    ln -s "$alertmanager" "$tmp/bin/alertmanager"
  fi
  for binary in prometheus promtool alertmanager amtool; do
    "$tmp/bin/$binary" --version >"$tmp/$binary.version" 2>&1 ||
      { cat "$tmp/$binary.version" >&2; die "'$binary' does not run on this machine, see above"; }
  done
  place prometheus
  finish prometheus "$stamp"
}

# with_templates: makes bin/alertmanager. Debian's binary opens its default templates by a fixed path under /usr,
# where nothing was installed. This copy looks into file descriptor 9 instead (a path of the same length), which
# bin/alertmanager opens on the unpacked templates before it becomes the binary.
with_templates() {
  LC_ALL=C sed -i 's|/usr/share/prometheus/alertmanager|/proc/self/fd/9///////////////////|g' "$tmp/usr/bin/prometheus-alertmanager"
  cat >"$tmp/bin/alertmanager" <<'EOF'
#!/usr/bin/env bash
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec 9<"$home/usr/share/prometheus/alertmanager"
exec "$home/usr/bin/prometheus-alertmanager" "$@"
EOF
  chmod +x "$tmp/bin/alertmanager"
}

# Redis, unpacked in the same way. Its libraries are on any Debian or are unpacked beside it.
redis() {
  local stamp="redis recipe $redis_recipe"
  fresh redis "$stamp" && return
  begin redis
  mkdir "$tmp/bin"
  if unpack redis-server redis-tools libjemalloc2 liblzf1; then
    cat >"$tmp/bin/redis-server" <<'EOF'
#!/usr/bin/env bash
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export LD_LIBRARY_PATH=$(echo "$home"/usr/lib/*-linux-gnu*)
exec "$home/usr/bin/redis-server" "$@"
EOF
    chmod +x "$tmp/bin/redis-server"
  else
    command -v redis-server >/dev/null || die "'redis-server' is not in PATH and there is no apt-get to fetch it with: install Redis"
    ln -s "$(command -v redis-server)" "$tmp/bin/redis-server"
  fi
  "$tmp/bin/redis-server" --version >"$tmp/version" 2>&1 || { cat "$tmp/version" >&2; die "Redis does not run on this machine, see above"; }
  place redis
  finish redis "$stamp"
}

# Mosquitto, unpacked in the same way, with those of its libraries that a small Debian lacks.
mosquitto() {
  local stamp="mosquitto recipe $mosquitto_recipe"
  fresh mosquitto "$stamp" && return
  begin mosquitto
  mkdir "$tmp/bin"
  if unpack mosquitto libmosquitto1 libcjson1 libdlt2 libwrap0; then
    cat >"$tmp/bin/mosquitto" <<'EOF'
#!/usr/bin/env bash
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
libraries=$(printf '%s:' "$home"/usr/lib/*-linux-gnu* "$home"/lib/*-linux-gnu*)
export LD_LIBRARY_PATH=${libraries%:}
exec "$home/usr/sbin/mosquitto" "$@"
EOF
    chmod +x "$tmp/bin/mosquitto"
  else
    command -v mosquitto >/dev/null || die "'mosquitto' is not in PATH and there is no apt-get to fetch it with: install Mosquitto"
    ln -s "$(command -v mosquitto)" "$tmp/bin/mosquitto"
  fi
  # It ends with an error after it has told what it is.
  "$tmp/bin/mosquitto" -h >"$tmp/version" 2>&1 || true
  grep -q '^mosquitto version' "$tmp/version" || { cat "$tmp/version" >&2; die "Mosquitto does not run on this machine, see above"; }
  place mosquitto
  finish mosquitto "$stamp"
}

# A browser's remote control and the accessibility checks, at the versions of the lock file. The browser itself is
# Debian's, see below.
browser() {
  local from=$here/../web/browser stamp
  stamp="browser recipe $browser_recipe $(cksum <"$from/package-lock.json")"
  fresh browser "$stamp" && return
  tool node nodejs
  tool npm npm
  begin browser
  cp "$from/package.json" "$from/package-lock.json" "$tmp/"
  (cd "$tmp" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >npm.log 2>&1) ||
    { tail -n 20 "$tmp/npm.log" >&2; die "npm could not get what internal/web/browser/package-lock.json names, see above"; }
  place browser
  finish browser "$stamp"
}

# RabbitMQ with the Erlang that it runs on, unpacked. Nothing of
# them is in PATH and no user, cookie or service is made; internal/servers says where Erlang is when it starts the broker.
rabbitmq() {
  local stamp="rabbitmq recipe $rabbitmq_recipe" plugins erts
  local erlang=(base asn1 crypto eldap inets mnesia os-mon parsetools public-key runtime-tools ssl syntax-tools tools xmerl)
  local packages=(rabbitmq-server "${erlang[@]/#/erlang-}")
  fresh rabbitmq "$stamp" && return
  begin rabbitmq
  unpack "${packages[@]}" || die "there is no apt-get to fetch RabbitMQ with: unpack Debian's ${packages[*]} into $dir/rabbitmq"
  plugins=$(echo "$tmp"/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins)
  erts=$(echo "$tmp"/usr/lib/erlang/erts-*)
  [ -d "$plugins" ] && [ -x "$erts/bin/erlexec" ] || die "Debian's rabbitmq-server and erlang are laid out otherwise than expected"
  # What Erlang's own libraries need besides is on any Debian; one that is not is named here and not in a test.
  ! ldd "$erts/bin/beam.smp" "$tmp"/usr/lib/erlang/lib/crypto-*/priv/lib/crypto.so | grep 'not found' >&2 ||
    die "Erlang lacks the libraries above: install them (apt-get install libtinfo6 libssl3 libstdc++6 zlib1g)"
  basename "$(dirname "$plugins")" | sed 's/^rabbitmq_server-//' >"$tmp/version"
  place rabbitmq
  finish rabbitmq "$stamp"
}

# SQS and SNS in memory. The environment is only for its pip: one that is moved does not work.
moto() {
  local pins=$here/moto/requirements.txt stamp
  tool python3 python3
  stamp="moto recipe $moto_recipe $(python3 -c 'import sys; print(sys.version_info[:2])') $(cksum <"$pins")"
  fresh moto "$stamp" && return
  python3 -c 'import ensurepip, venv' 2>/dev/null || with_venv
  begin moto
  { python3 -m venv "$tmp/venv" && "$tmp/venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: --target "$tmp/lib" -r "$pins"; } >"$tmp/pip.log" 2>&1 ||
    { tail -n 20 "$tmp/pip.log" >&2; die "pip could not get what internal/servers/moto/requirements.txt names, see above"; }
  rm -rf "$tmp/venv"
  PYTHONPATH=$tmp/lib python3 -c 'import moto.server, moto.sqs, moto.sns' >"$tmp/try.log" 2>&1 || { tail -n 20 "$tmp/try.log" >&2; die "moto does not run on this machine, see above"; }
  place moto
  finish moto "$stamp"
}

# with_venv: Debian keeps the part of Python that makes environments in a package of its own.
with_venv() {
  local missing="Python's venv is missing: install it (Debian: apt-get install python3-venv) and run this again"
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "$missing"
  say "installing python3-venv"
  [ -n "$apt_updated" ] || { apt-get -qq update || say "apt-get update had errors, going on with the lists there are"; apt_updated=1; }
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >"$dir/.apt.log" 2>&1 || { tail -n 20 "$dir/.apt.log" >&2; die "$missing"; }
  python3 -c 'import ensurepip, venv' 2>/dev/null || die "$missing"
}

# PostgreSQL, unpacked with the libraries that not every Debian has. It finds its own files from where it lies.
postgres() {
  local stamp="postgres recipe $postgres_recipe" home binary libraries
  fresh postgres "$stamp" && return
  begin postgres
  if unpack postgresql-15 libpq5 libicu72 libxml2 libldap-2.5-0 libsasl2-2 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libkeyutils1 libssl3; then
    home=usr/lib/postgresql/15
    rm -rf "$tmp/$home/lib/bitcode" "$tmp/usr/share/locale" "$tmp/usr/share/doc"
    ln -s "$home/bin" "$tmp/bin"
  else
    command -v pg_config >/dev/null || die "'pg_config' is not in PATH and there is no apt-get to fetch PostgreSQL with: install it, with its server"
    ln -s "$(pg_config --bindir)" "$tmp/bin"
  fi
  libraries=$(echo "$tmp"/usr/lib/*-linux-gnu*)
  for binary in initdb postgres; do
    LD_LIBRARY_PATH=$libraries "$tmp/bin/$binary" --version >"$tmp/version" 2>&1 ||
      { cat "$tmp/version" >&2; die "PostgreSQL's '$binary' does not run on this machine, see above"; }
  done
  place postgres
  finish postgres "$stamp"
}

mkdir -p "$dir"
# Two runs at once would remove each other's half-made directories.
if command -v flock >/dev/null; then
  exec 9>"$dir/.lock"
  flock 9
fi
# The servers and the browser tests run on these, also when nothing is left to install; the code and the commands of the
# documentation need the rest.
tool javac default-jdk-headless
tool java default-jre-headless
tool node nodejs
tool chromium chromium fonts-dejavu-core
tool python3 python3
tool curl curl
kafka kafka39
kafka kafka4
kinesis
grafana
prometheus
redis
browser
rabbitmq
moto
mosquitto
postgres
