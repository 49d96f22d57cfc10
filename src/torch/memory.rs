//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use tch::{Device, Tensor};

use super::error::{invalid, torch};
use crate::error::Result;

/// Bytes of all elements, if the tensor is a plain block of memory on the CPU.
fn block_len_bytes(tensor: &Tensor) -> Result<usize> {
    if !tensor.defined() {
        return Err(invalid("a tensor is undefined: pass a tensor that was made"));
    }
    let kind = tensor.f_kind().map_err(torch("read the kind of a tensor"))?;
    if tensor.device() != Device::Cpu || tensor.is_sparse() || tensor.is_mkldnn() || !tensor.is_contiguous() {
        return Err(invalid(format!(
            "the bytes of a {kind:?} tensor on {:?} were asked for: it has to be a dense contiguous tensor on the CPU",
            tensor.device()
        )));
    }
    tensor
        .numel()
        .checked_mul(kind.elt_size_in_bytes())
        .filter(|&len| isize::try_from(len).is_ok())
        .ok_or_else(|| invalid("the size of a tensor overflows"))
}

/// The elements of a dense contiguous CPU tensor, as bytes. Nothing is copied.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(super) fn bytes(tensor: &Tensor) -> Result<&[u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&[]);
    }
    // SAFETY: a contiguous CPU tensor of `numel` elements owns `len` readable bytes from its data pointer on, for as
    // long as the tensor lives, which the borrow holds; `u8` needs no alignment. Writing to the same storage from
    // another thread meanwhile, through a shallow clone, is a race in libtorch itself, and its users must not.
    Ok(unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) })
}

/// The elements of a dense contiguous CPU tensor, as bytes to be written. Only for tensors that this crate made and
/// has not handed out.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(super) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: as in `bytes`; the tensor was made by the caller, so nothing else refers to its storage, and the
    // exclusive borrow holds that. Memory that libtorch allocated holds some bytes, whichever they are.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), len) })
}
