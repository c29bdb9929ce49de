#!/bin/sh
# dist/astrolabe_VERSION_ARCH.deb from the wheel in dist/: `make deb`.
#
# The product in a virtual environment of Debian's own python3 (Debian 12), /opt/astrolabe/.venv, with all that it needs from PyPI;
# units, configuration, a system user. PIP: a pip that can install into other environments.
set -eu
here=$(dirname "$0")
PIP=${PIP:-.venv/bin/python -m pip}
PYTHON=${DEB_PYTHON:-/usr/bin/python3}
wheel=$(ls -t dist/astrolabe-*.whl | head -n 1)
version=$(basename "$wheel" | cut -d- -f2)
minor=$("$PYTHON" -c 'import sys; print(f"3.{sys.version_info[1]}")')
next=$("$PYTHON" -c 'import sys; print(f"3.{sys.version_info[1] + 1}")')
architecture=$(dpkg --print-architecture)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
home=/opt/astrolabe/.venv
install -d "$root/opt/astrolabe" "$root/usr/bin" "$root/lib/systemd/system" "$root/etc/astrolabe" "$root/usr/share/doc/astrolabe"
"$PYTHON" -m venv --without-pip "$root$home"
$PIP --python "$root$home/bin/python" install --quiet --no-compile "$wheel[models,otel]"
# Half a minute here, or at the first start of every node.
PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 "$root$home/bin/python" -m protos.runtime.kernels
# It will lie elsewhere than it was made.
rm -f "$root$home"/bin/[Aa]ctivate*
grep -rlI "$root" "$root$home/bin" "$root$home/pyvenv.cfg" | xargs -r sed -i "s|$root||g"
# A service may not write beside its sources, and Python that is compiled anew at each start takes seconds.
"$root$home/bin/python" -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$root$home/lib"
ln -s "$home/bin/astrolabe" "$root/usr/bin/astrolabe"
install -m 644 deploy/systemd/*.service "$root/lib/systemd/system"
install -m 640 deploy/config/*.toml "$root/etc/astrolabe"
install -m 644 deploy/README.md "$root/usr/share/doc/astrolabe"
install -m 644 "$here/copyright" "$root/usr/share/doc/astrolabe"

install -d "$root/DEBIAN"
install -m 755 "$here"/debian/p* "$root/DEBIAN"
(cd "$root" && find etc -type f -printf '/%p\n' | sort) >"$root/DEBIAN/conffiles"
sed -e "s|@VERSION@|$version|; s|@ARCHITECTURE@|$architecture|; s|@MINOR@|$minor|; s|@NEXT@|$next|" \
  -e "s|@SIZE@|$(du -sk --exclude DEBIAN "$root" | cut -f1)|" "$here/debian/control" >"$root/DEBIAN/control"
(cd "$root" && find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -type d -exec chmod 755 {} +
made="dist/astrolabe_${version}_${architecture}.deb"
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$made" >/dev/null
echo "$made: $(du -h "$made" | cut -f1)"
