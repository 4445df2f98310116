#!/usr/bin/env bash
# Makes the archive and the Debian package of what users install. The same input
# gives the same bytes.
#
#   package.sh <out.tar.gz> <out.deb> <the files that FILES below names>...
#
# One tree for both, as Debian lays it out: usr/include, usr/lib/<machine>,
# usr/share. One package, for who compiles and for who only runs: there is one
# version of the interface, and nobody installs the library but for a program that
# is built on the machine. What uses pkg-config or CMake finds the folder by itself,
# also where the tree is unpacked elsewhere than at /.
set -euo pipefail

tarball="$1"
deb="$2"
shift 2
for file in "$@"; do
  case "$file" in
    */firsttouch.h) header="$file" ;;
    */libfirsttouch.so) shared="$file" ;;
    */libfirsttouch.a) static="$file" ;;
    */libfirsttouch.flags) flags="$(< "$file")" ;;
    */read_header.py) read_header="$file" ;;
    *LICENSE) license="$file" ;;
    */quickstart.*) quickstarts+=("$file") ;;
    *) echo "package.sh: $file: what is it for?" >&2; exit 1 ;;
  esac
done

version="$(python3 -B "$read_header" "$header" version)"
soname="$(LC_ALL=C readelf --dynamic "$shared" | sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p')"
machine="$(gcc -print-multiarch)"
# Of every file. No clock has a say in what comes out.
export SOURCE_DATE_EPOCH=315532800 TZ=UTC LC_ALL=C

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
umask 022
lib="$root/usr/lib/$machine"
doc="$root/usr/share/doc/firsttouch"
mkdir -p "$root/usr/include" "$lib/pkgconfig" "$lib/cmake/firsttouch" "$doc/examples"

install -m 644 "$header" "$root/usr/include/firsttouch.h"
install -m 644 "$static" "$lib/libfirsttouch.a"
strip --strip-debug --enable-deterministic-archives "$lib/libfirsttouch.a"
install -m 644 "$shared" "$lib/libfirsttouch.so.$version"
strip --strip-unneeded "$lib/libfirsttouch.so.$version"
ln -s "libfirsttouch.so.$version" "$lib/$soname"
ln -s "$soname" "$lib/libfirsttouch.so"

# What the archive needs besides itself. Of abseil all, as the group is linked by
# Bazel; the linker takes what is used.
private="-Wl,--as-needed $flags -lstdc++ -lm -ldl"
cat > "$lib/pkgconfig/firsttouch.pc" << END
prefix=\${pcfiledir}/../../..
includedir=\${prefix}/include
libdir=\${prefix}/lib/$machine

Name: firsttouch
Description: Memories for short-lived sandboxes, supplied page by page
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -lfirsttouch
Libs.private: $private
END

cat > "$lib/cmake/firsttouch/firsttouch-config.cmake" << END
# firsttouch::firsttouch is the shared library, firsttouch::static the archive.
get_filename_component(_firsttouch_lib "\${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
get_filename_component(_firsttouch_usr "\${_firsttouch_lib}/../.." ABSOLUTE)
if(NOT TARGET firsttouch::firsttouch)
  add_library(firsttouch::firsttouch SHARED IMPORTED)
  set_target_properties(firsttouch::firsttouch PROPERTIES
    IMPORTED_LOCATION "\${_firsttouch_lib}/libfirsttouch.so.$version"
    IMPORTED_SONAME "$soname"
    INTERFACE_INCLUDE_DIRECTORIES "\${_firsttouch_usr}/include")
  add_library(firsttouch::static STATIC IMPORTED)
  set_target_properties(firsttouch::static PROPERTIES
    IMPORTED_LOCATION "\${_firsttouch_lib}/libfirsttouch.a"
    INTERFACE_INCLUDE_DIRECTORIES "\${_firsttouch_usr}/include"
    INTERFACE_LINK_LIBRARIES "${private// /;}")
endif()
unset(_firsttouch_lib)
unset(_firsttouch_usr)
END
cat > "$lib/cmake/firsttouch/firsttouch-config-version.cmake" << END
# The interface is kept, so that a later version does for an earlier one.
set(PACKAGE_VERSION "$version")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
END

# Documentation, of the header.
python3 -B "$read_header" "$header" man "$root/usr/share/man"
find "$root/usr/share/man" -type f -exec gzip -9 --no-name {} +
python3 -B "$read_header" "$header" markdown > "$doc/c-api.md"
install -m 644 "${quickstarts[@]}" "$doc/examples"
{
  echo "firsttouch $version, under the Apache License, Version 2.0:"
  echo
  cat "$license"
} > "$doc/copyright"

# --- The archive

find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
tar --create --directory="$root" --format=ustar --sort=name --owner=0 --group=0 \
  --numeric-owner usr | gzip -9 --no-name > "$tarball"

# --- The Debian package

# The packages that have what the library is linked with. The loader, which is in
# another folder, comes with the C library.
mapfile -t needed < <(readelf --dynamic "$shared" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p')
depends="$(dpkg-query --search "${needed[@]/#/*/$machine/}" 2> /dev/null |
  sed -n 's/^\([^:, ]*\):.*/\1/p' | sort -u | paste -s -d, | sed 's/,/, /g')"
mkdir "$root/DEBIAN"
cat > "$root/DEBIAN/control" << END
Package: firsttouch
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: firsttouch <firsttouch@localhost>
Section: libdevel
Priority: optional
Installed-Size: $(du --summarize --apparent-size --block-size=1K "$root/usr" | cut -f1)
Depends: $depends
Suggests: libabsl-dev, libprotobuf-dev, libssl-dev, libzstd-dev, zlib1g-dev
Description: memories for short-lived sandboxes, supplied page by page
 A memory starts as an image, which is not copied: it costs the pages that its
 guest changes. A touch out of bounds traps. After a release the memory is as it
 was at first, and ready for the next guest.
 .
 The library, what is needed to compile with it, and its manual. The suggested
 packages are for who links the archive in place of the shared library.
END
printf 'activate-noawait ldconfig\n' > "$root/DEBIAN/triggers"
find "$root/DEBIAN" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --build --root-owner-group -Zxz -z3 "$root" "$deb" > /dev/null
