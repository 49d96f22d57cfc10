//! The bytes of tensors, arrays and byte arrays: the only unsafe code of this crate.
#![expect(unsafe_code, reason = "Python's libraries hand out the address of an array's elements as an integer")]

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyByteArrayMethods};

use crate::tensors::tensor::PyTensor;

/// The bytes of a row-major tensor in main memory; `None` for any other.
pub(crate) fn bytes(tensor: &PyTensor) -> Option<&[u8]> {
    if !tensor.is_block() {
        return None;
    }
    span(tensor, tensor.len_bytes())
}

/// The first `len` bytes from the first element on, which the caller knows to lie in the tensor's memory.
fn span(tensor: &PyTensor, len: usize) -> Option<&[u8]> {
    if len == 0 {
        return Some(&[]);
    }
    if tensor.address() == 0 || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: `address` is that of the first element of a strided tensor in main memory, of which `len` bytes belong to
    // its storage. The handle keeps the tensor alive, and with it the storage; it is a handle of this crate's own
    // (`PyTensor::host`), so an assignment to `data` of the caller's tensor does not free it. `u8` needs no alignment.
    // A write by another thread meanwhile is a data race in the caller's program, as with every operation of PyTorch.
    Some(unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(tensor.address()), len) })
}

/// The bytes that the elements of a strided tensor in main memory span; `None` for any other, or if they overflow.
pub(crate) fn strided_bytes<'a>(tensor: &'a PyTensor, strides: &[usize]) -> Option<&'a [u8]> {
    let sizes = tensor.shape();
    if !tensor.is_dense() || sizes.len() != strides.len() {
        return None;
    }
    if sizes.contains(&0) {
        return Some(&[]);
    }
    let mut farthest = 0_usize;
    for (size, stride) in sizes.iter().zip(strides) {
        farthest = farthest.checked_add((size - 1).checked_mul(*stride)?)?;
    }
    span(tensor, farthest.checked_add(1)?.checked_mul(tensor.kind().width)?)
}

/// The bytes of a tensor that this crate made and has not handed out, for writing; `None` for any other.
pub(crate) fn bytes_mut(tensor: &mut PyTensor) -> Option<&mut [u8]> {
    if !tensor.is_own() || !tensor.is_block() {
        return None;
    }
    block_mut(tensor.address(), tensor.len_bytes())
}

/// The bytes of the tensor that the caller passed to be filled; `None` unless it is a row-major block in main memory.
pub(crate) fn caller_bytes_mut(tensor: &mut PyTensor) -> Option<&mut [u8]> {
    if !tensor.is_block() {
        return None;
    }
    block_mut(tensor.address(), tensor.len_bytes())
}

fn block_mut<'a>(address: usize, len: usize) -> Option<&'a mut [u8]> {
    if len == 0 {
        return Some(&mut []);
    }
    if address == 0 || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: as in `span`. The elements are written by nobody else: the tensor was just made, or the caller passed it
    // to be filled. The borrow is bound to that of the tensor by the two callers above.
    Some(unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(address), len) })
}

/// The bytes of a NumPy array in row-major order, whose object the caller keeps.
pub(crate) fn array_bytes(_keep: &Py<PyAny>, address: usize, len: usize) -> Option<&[u8]> {
    if len == 0 {
        return Some(&[]);
    }
    if address == 0 || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: NumPy gives the address of the first element of a row-major array of `len` bytes. The array is alive, as
    // the caller keeps its object, and an array cannot be given other memory while it is referred to.
    Some(unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(address), len) })
}

/// The bytes of a NumPy array that this crate made or that the caller passed to be filled, for writing.
pub(crate) fn array_bytes_mut(_keep: &mut Py<PyAny>, address: usize, len: usize) -> Option<&mut [u8]> {
    block_mut(address, len)
}

/// The bytes of a byte array that this crate made and has not handed out.
pub(crate) fn byte_array_mut<'a>(array: &'a mut Bound<'_, PyByteArray>) -> &'a mut [u8] {
    // SAFETY: nobody else refers to the array, so it is neither resized nor written while the slice is used.
    unsafe { array.as_bytes_mut() }
}

/// The elements of a row-major `int64` tensor in main memory; `None` for any other.
pub(crate) fn integers(tensor: &PyTensor) -> Option<&[i64]> {
    let bytes = bytes(tensor).filter(|_| tensor.kind().name() == "int64")?;
    if bytes.is_empty() {
        return Some(&[]);
    }
    // SAFETY: every pattern of bits is an integer, and the slice has only whole ones if it is aligned.
    let (before, integers, after) = unsafe { bytes.align_to::<i64>() };
    (before.is_empty() && after.is_empty()).then_some(integers)
}

/// The bytes of a row-major tensor in main memory, whose address the tensor has just told; `None` if it has none.
pub(crate) fn watched_bytes<'a>(_tensor: &'a Bound<'_, PyAny>, address: usize, len: usize) -> Option<&'a [u8]> {
    if len == 0 || address == 0 || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: the tensor said that its first element is at `address`, and that it has as many elements as when it was
    // described as a row-major tensor of `len` bytes. The caller holds the object and the interpreter meanwhile.
    Some(unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(address), len) })
}
