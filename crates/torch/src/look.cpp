// What tells that a variable was written to or exchanged, read where libtorch keeps it. One call looks at all variables of
// a module: a call into libtorch for each of hundreds takes longer than serving a sample.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <ATen/core/Tensor.h>

namespace {

const c10::TensorImpl* impl_of(const void* tensor) {
  return static_cast<const at::Tensor*>(tensor)->unsafeGetTensorImpl();
}

// The finalizer of SplitMix64.
std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) + 0x9E3779B97F4A7C15;
  hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9;
  hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EB;
  return hash ^ (hash >> 31);
}

}  // namespace

extern "C" {

// A tensor whose storage and count of writes are known.
struct tensorcask_seen {
  const void* impl;
  const void* storage;
};

tensorcask_seen tensorcask_see(const void* tensor) noexcept {
  const c10::TensorImpl* impl = impl_of(tensor);
  return {impl, impl->unsafe_storage().unsafeGetStorageImpl()};
}

// Whether libtorch counts the writes to it.
bool tensorcask_counted(const void* tensor) noexcept { return impl_of(tensor)->version_counter().enabled(); }

// Adds up the counts of writes, which only grow. `same` tells whether all have the storage that is known.
std::uint64_t tensorcask_look(const tensorcask_seen* seen, std::size_t len, bool* same) noexcept {
  std::uint64_t writes = 0;
  std::uintptr_t differ = 0;
  for (std::size_t at = 0; at < len; ++at) {
    const auto* impl = static_cast<const c10::TensorImpl*>(seen[at].impl);
    const auto& counter = impl->version_counter();
    writes += counter.enabled() ? counter.current_version() : 0;
    differ |= reinterpret_cast<std::uintptr_t>(impl->unsafe_storage().unsafeGetStorageImpl()) ^
              reinterpret_cast<std::uintptr_t>(seen[at].storage);
  }
  *same = differ == 0;
  return writes;
}

// A hash of dtype, layout, device, sizes, strides and address.
std::uint64_t tensorcask_layout(const void* tensor) noexcept {
  const c10::TensorImpl* impl = impl_of(tensor);
  try {
    const auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    std::uint64_t hash = mix(0, static_cast<std::uint64_t>(c10::typeMetaToScalarType(impl->dtype())));
    hash = mix(hash, static_cast<std::uint64_t>(impl->key_set().raw_repr()));
    hash = mix(hash, reinterpret_cast<std::uintptr_t>(storage == nullptr ? nullptr : storage->data()));
    if (storage != nullptr) {
      hash = mix(hash, static_cast<std::uint64_t>(impl->storage_offset()));
      for (const std::int64_t stride : impl->strides()) {
        hash = mix(hash, static_cast<std::uint64_t>(stride));
      }
    }
    for (const std::int64_t size : impl->sizes()) {
      hash = mix(hash, static_cast<std::uint64_t>(size));
    }
    return hash;
  } catch (...) {
    return 0;
  }
}

bool tensorcask_requires_grad(const void* tensor) noexcept { return impl_of(tensor)->requires_grad(); }

}  // extern "C"
