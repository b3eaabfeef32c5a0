# SPDX-License-Identifier: Apache-2.0
# Relocatable folders of programs and the shared libraries they need: what tools/package and
# tools/gpu have in common. To be sourced in the root of the repository.

# bundle_build FOLDER ARCHITECTURES OPTION... -- TARGET...: builds the targets in FOLDER for a list
# of architectures as CMake spells them ("80-real;90a-real"), "default" or "none": without CUDA.
# The programs look for libraries in ../lib before they look elsewhere, and so do the libraries.
bundle_build() {
  local build=$1 archs=$2 options=()
  shift 2
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  case "$archs" in
    none) options+=(-DSCGRAFT_CUDA=OFF -UCMAKE_CUDA_ARCHITECTURES) ;;
    default) options+=(-DSCGRAFT_CUDA=ON -UCMAKE_CUDA_ARCHITECTURES) ;;
    *) options+=(-DSCGRAFT_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$archs") ;;
  esac
  command -v ccache >/dev/null && options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  # RPATH, not RUNPATH: it counts for the libraries of libraries too.
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSCGRAFT_WARNINGS_AS_ERRORS=ON \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DCMAKE_INSTALL_RPATH=\$ORIGIN/../lib" \
    -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags "${options[@]}" >&2
  cmake --build "$build" --target "$@" >&2
}

# Libraries that belong to the system's C library, whose version programs cannot bring along.
bundle_is_system() {
  [[ $1 =~ ^(linux-vdso|ld-linux.*|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl))\.so ]]
}

# bundle_libraries FOLDER: copies what the programs in FOLDER/bin load into FOLDER/lib, and licence
# texts into FOLDER/licences.
bundle_libraries() {
  local folder=$1 name path package file
  local -A found=() packages=()
  while read -r name _ path _; do
    bundle_is_system "${name##*/}" && continue
    [ -f "$path" ] || { echo "$name: no such library on this machine" >&2; return 1; }
    found[$name]=$path
  done < <(ldd "$folder"/bin/* | grep '=>' | sort -u)
  mkdir -p "$folder/lib" "$folder/licences"
  cp LICENSE "$folder/licences/scgraft"
  for name in "${!found[@]}"; do
    cp -L "${found[$name]}" "$folder/lib/$name"
    chmod 644 "$folder/lib/$name"
    path=$(readlink -f "${found[$name]}")
    # One of the two spellings is unknown to it.
    package=$({ dpkg-query -S "$path" "${path#/usr}" 2>/dev/null || true; } | sed -n 1p)
    packages[${package%%:*}]=1
  done
  # What is compiled in.
  for name in libhdf5-dev libcli11-dev nlohmann-json3-dev libeigen3-dev libgtest-dev libbenchmark-dev; do
    packages[$name]=1
  done
  for package in "${!packages[@]}"; do
    file=/usr/share/doc/$package/copyright
    [ -f "$file" ] || { echo "no licence text of package '$package'" >&2; return 1; }
    cp -L "$file" "$folder/licences/$package"
  done
  # Licences that those texts refer to by their place on Debian.
  while read -r file; do
    cp -L "$file" "$folder/licences/${file##*/}"
  done < <(grep -rhoE '/usr/share/common-licenses/[A-Za-z0-9.+-]*[A-Za-z0-9]' "$folder/licences" |
    sort -u | while read -r file; do if [ -f "$file" ]; then echo "$file"; fi; done)
  cat >"$folder/licences/cuda-runtime" <<'END'
Programs built for GPUs contain the CUDA runtime of NVIDIA Corporation. It is distributed under the
End User License Agreement of the CUDA toolkit, https://docs.nvidia.com/cuda/eula, as a library that
applications may bring along (attachment A).
END
  if ldd "$folder"/bin/* | grep -q libcudart; then
    echo "a program loads the CUDA runtime, which should be part of it" >&2
    return 1
  fi
}

# What the build folder compiles for: "75-real 80", or "none".
bundle_architectures() {
  sed -n 's/^CMAKE_CUDA_ARCHITECTURES:[A-Z]*=//p' "$1/CMakeCache.txt" | tr ';' ' ' | grep . || echo none
}

# The oldest C library that FOLDER's programs run with: "2.36".
bundle_glibc() {
  objdump -T "$1"/bin/* "$1"/lib/* 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1 |
    sed 's/GLIBC_//'
}

# bundle_alone FOLDER: fails when a program in FOLDER/bin loads something of this machine.
bundle_alone() {
  local folder name path wrong=0
  folder=$(realpath "$1")
  while read -r name _ path _; do
    bundle_is_system "${name##*/}" && continue
    case "$path" in
      "$folder"/*) ;;
      *) echo "$name is taken from $path" >&2; wrong=1 ;;
    esac
  done < <(env -i ldd "$folder"/bin/* | grep '=>' | sort -u)
  return "$wrong"
}
