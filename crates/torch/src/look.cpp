// Detects tensors that were written to or replaced, from libtorch's internal state. One call inspects all variables of
// a module, as one call into libtorch per variable would take longer than serving a sample.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <ATen/SequenceNumber.h>
#include <ATen/core/Tensor.h>

namespace {

const c10::TensorImpl* impl_of(const void* tensor) {
  return static_cast<const at::Tensor*>(tensor)->unsafeGetTensorImpl();
}

const c10::StorageImpl* storage_of(const c10::TensorImpl* impl) {
  return impl->unsafe_storage().unsafeGetStorageImpl();
}

std::uint64_t writes_to(const c10::TensorImpl* impl) {
  const auto& counter = impl->version_counter();
  return counter.enabled() ? counter.current_version() : 0;
}

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15;
  return hash ^ (hash >> 32);
}

std::uint64_t hash_bytes(const char* bytes, std::size_t len, std::uint64_t hash) {
  for (; len >= 8; bytes += 8, len -= 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes, 8);
    hash = mix(hash, word);
  }
  std::uint64_t rest = len;
  std::memcpy(&rest, bytes, len);
  return mix(hash, rest);
}

bool is_strided(const c10::TensorImpl* impl) {
  return storage_of(impl) != nullptr && impl->layout() == c10::kStrided &&
         !impl->key_set().has_any(c10::DispatchKeySet(c10::DispatchKey::NestedTensor));
}

// A hash of dtype, layout, device, sizes, strides, address, and gradients.
std::uint64_t layout_of(const c10::TensorImpl* impl) {
  std::uint64_t hash = mix(impl->key_set().raw_repr(), impl->requires_grad());
  if (const auto* meta = impl->autograd_meta(); meta != nullptr && meta->grad().defined()) {
    hash = mix(hash, reinterpret_cast<std::uintptr_t>(meta->grad().unsafeGetTensorImpl()));
    hash = mix(hash, writes_to(meta->grad().unsafeGetTensorImpl()));
  }
  hash = mix(hash, static_cast<std::uint64_t>(c10::typeMetaToScalarType(impl->dtype())));
  if (!is_strided(impl)) {
    return hash;
  }
  hash = mix(hash, reinterpret_cast<std::uintptr_t>(storage_of(impl)->data()));
  hash = mix(hash, static_cast<std::uint64_t>(impl->storage_offset()));
  for (const std::int64_t size : impl->sizes()) {
    hash = mix(hash, static_cast<std::uint64_t>(size));
  }
  for (const std::int64_t stride : impl->strides()) {
    hash = mix(hash, static_cast<std::uint64_t>(stride));
  }
  return hash;
}

// A hash of the bytes of a contiguous CPU tensor: of all bytes of a small one, else of bytes in eight places, or of all
// of up to `most_bytes` if libtorch does not count writes to it.
std::uint64_t bytes_of(const c10::TensorImpl* impl, std::size_t most_bytes) {
  constexpr std::size_t kFew = 256, kPlaces = 8;
  if (!impl->is_cpu() || !is_strided(impl) || !impl->is_contiguous()) {
    return 0;
  }
  const auto* bytes = static_cast<const char*>(storage_of(impl)->data());
  const std::size_t len = static_cast<std::size_t>(impl->numel()) * impl->itemsize();
  if (bytes == nullptr || len == 0) {
    return 0;
  }
  bytes += static_cast<std::size_t>(impl->storage_offset()) * impl->itemsize();
  if (len <= kFew || (!impl->version_counter().enabled() && len <= most_bytes)) {
    return hash_bytes(bytes, len, 1);
  }
  std::uint64_t hash = 1;
  for (std::size_t place = 0; place < kPlaces; ++place) {
    hash = hash_bytes(bytes + (len - 8) / (kPlaces - 1) * place, 8, hash);
  }
  return hash;
}

}  // namespace

extern "C" {

// The state that each call compares: the addresses of a tensor, of its storage, and of its gradient.
struct tensorcask_seen {
  const void* impl;
  const void* storage;
  // The place of the tensor's gradient; null if it never required gradients. It lives as long as the tensor.
  const void* grad_slot;
  const void* grad;
};

tensorcask_seen tensorcask_see(const void* tensor) noexcept {
  const c10::TensorImpl* impl = impl_of(tensor);
  const c10::AutogradMetaInterface* meta = impl->autograd_meta();
  const at::Tensor* slot = meta == nullptr ? nullptr : &meta->grad();
  const bool has_grad = slot != nullptr && slot->defined();
  return {impl, storage_of(impl), slot, has_grad ? slot->unsafeGetTensorImpl() : nullptr};
}

// The sum of the write counts, which only grow. `same` is set to whether all tensors have their recorded storage.
std::uint64_t tensorcask_look(const tensorcask_seen* seen, std::size_t len, bool* same) noexcept {
  std::uint64_t writes = 0;
  bool differ = false;
  for (const tensorcask_seen* one = seen; one < seen + len; ++one) {
    const auto* impl = static_cast<const c10::TensorImpl*>(one->impl);
    writes += writes_to(impl);
    differ |= storage_of(impl) != one->storage;
  }
  *same = !differ;
  return writes;
}

// The sum of the write counts of the gradients. `same` is set to whether all gradients are the recorded ones.
std::uint64_t tensorcask_look_at_grads(const tensorcask_seen* seen, std::size_t len, bool* same) noexcept {
  std::uint64_t writes = 0;
  bool differ = false;
  for (const tensorcask_seen* one = seen; one < seen + len; ++one) {
    if (one->grad_slot == nullptr) {
      differ |= static_cast<const c10::TensorImpl*>(one->impl)->autograd_meta() != nullptr;
      continue;
    }
    const auto* slot = static_cast<const at::Tensor*>(one->grad_slot);
    const c10::TensorImpl* grad = slot->defined() ? slot->unsafeGetTensorImpl() : nullptr;
    if (grad != one->grad) {
      differ = true;
    } else if (grad != nullptr) {
      // The description keeps this gradient alive.
      writes += writes_to(grad);
    }
  }
  *same = !differ;
  return writes;
}

// Increases with each node of an autograd graph that this thread creates.
std::uint64_t tensorcask_graph_nodes() noexcept { return at::sequence_number::peek(); }

// A hash of the state that a write or a replacement may change in a tensor, as far as it can be read quickly. It
// includes writes that are not counted.
std::uint64_t tensorcask_look_closely(const void* tensor, std::size_t most_bytes) noexcept {
  const c10::TensorImpl* impl = impl_of(tensor);
  try {
    return mix(layout_of(impl), bytes_of(impl, most_bytes));
  } catch (...) {
    return 0;
  }
}

// Whether libtorch counts the writes to the tensor.
bool tensorcask_is_counted(const void* tensor) noexcept { return impl_of(tensor)->version_counter().enabled(); }

// Whether the tensor has strides.
bool tensorcask_is_strided(const void* tensor) noexcept { return is_strided(impl_of(tensor)); }

bool tensorcask_requires_grad(const void* tensor) noexcept { return impl_of(tensor)->requires_grad(); }

}  // extern "C"
