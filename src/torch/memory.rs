//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use tch::{Device, Tensor};
use torch_sys::c_generated::atg__version;
use torch_sys::{C_tensor, at_data_ptr, at_dim, at_requires_grad, at_scalar_type, at_shape, at_stride};
use xxhash_rust::xxh3::xxh3_64;

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

/// The elements of a dense CPU tensor of any layout.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// From the first element on, up to the end of the last in memory.
    pub bytes: &'a [u8],
    /// Bytes of an element.
    pub width: usize,
    pub sizes: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

/// The memory that the elements of a dense CPU tensor lie in. Nothing is copied.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(super) fn view(tensor: &Tensor) -> Result<View<'_>> {
    let refused = || invalid("the elements of a tensor were asked for: it has to be a dense tensor on the CPU");
    if !tensor.defined() || tensor.device() != Device::Cpu || tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(refused());
    }
    let width = tensor.f_kind().map_err(torch("read the kind of a tensor"))?.elt_size_in_bytes();
    let natural = |numbers: Vec<i64>| numbers.into_iter().map(|n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let sizes = natural(tensor.size()).ok_or_else(refused)?;
    let strides = natural(tensor.stride()).ok_or_else(refused)?;
    let address = tensor.data_ptr();
    if sizes.contains(&0) || address.is_null() {
        return Ok(View { bytes: &[], width, sizes, strides });
    }
    let mut farthest = 0_usize;
    for (size, stride) in sizes.iter().zip(&strides) {
        let reach = (size - 1).checked_mul(*stride).ok_or_else(refused)?;
        farthest = farthest.checked_add(reach).ok_or_else(refused)?;
    }
    let len = (farthest + 1).checked_mul(width).filter(|&len| isize::try_from(len).is_ok()).ok_or_else(refused)?;
    // SAFETY: strides are not negative, so that all elements lie between the first and the farthest, in one storage that
    // the tensor keeps alive. As to writes meanwhile, see `bytes`.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) };
    Ok(View { bytes, width, sizes, strides })
}

/// What a tensor looked like when it was last described. What does not change between calls is not asked for again.
#[derive(Debug, Default)]
pub(super) struct Described {
    kind: i32,
    address: usize,
    /// Sizes, then strides.
    dims: Vec<i64>,
    /// Whether it has strides and an address.
    dense: bool,
    /// Whether libtorch counts the writes to it: not for tensors made in inference mode.
    counted: bool,
    /// Bytes of a small one that is a block of memory on the CPU.
    readable: usize,
}

/// How `tensor` looks now. Of one of up to `small` elements on the CPU, bytes are read by [`look`].
pub(super) fn describe(tensor: &Tensor, small: usize) -> Described {
    if !tensor.defined() {
        return Described::default();
    }
    let dense = !tensor.is_sparse() && !tensor.is_mkldnn();
    let counted = tensor.f_internal_version().is_ok();
    let readable = if dense && tensor.numel() <= small { bytes(tensor).map_or(0, <[u8]>::len) } else { 0 };
    // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
    let kind = unsafe { at_scalar_type(tensor.as_ptr().cast_mut()) };
    let dims = if dense { [tensor.size(), tensor.stride()].concat() } else { tensor.size() };
    let address = if dense { tensor.data_ptr().addr() } else { 0 };
    Described { kind, address, dims, dense, counted, readable }
}

/// Whether an optimizer could change the tensor.
pub(super) fn requires_grad(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
    unsafe { at_requires_grad(tensor.as_ptr().cast_mut()) != 0 }
}

/// A number that is another one when the tensor was written to or exchanged: from its count of writes, and from whether
/// kind, sizes, strides and address are those of `known`. Of a small one on the CPU, some bytes count as well: batch
/// normalisation writes its statistics, all of them, without being counted.
///
/// This runs for every variable at every call of a module. The methods of `tch` look for an error after each call into
/// libtorch and allocate for sizes and for strides. `room` is used again. Kind, sizes and strides of a dense tensor are
/// looked at if it is to be `thorough`.
pub(super) fn look(tensor: &Tensor, known: &Described, thorough: bool, room: &mut Vec<i64>) -> u64 {
    let raw = tensor.as_ptr().cast_mut();
    if known.dense && !thorough {
        // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
        let address = unsafe { at_data_ptr(raw).cast::<u8>().cast_const() };
        return if address.addr() == known.address { look_at_bytes(raw, known, address) } else { changed(tensor) };
    }
    // SAFETY: the borrow keeps the tensor alive, and these calls only read what describes it.
    let (kind, dims) = unsafe { (at_scalar_type(raw), at_dim(raw)) };
    let numbers = if known.dense { dims.checked_mul(2) } else { Some(dims) };
    if kind != known.kind || numbers != Some(known.dims.len()) {
        return changed(tensor);
    }
    room.clear();
    room.resize(known.dims.len(), 0);
    let mut address: *const u8 = std::ptr::null();
    if let Some((sizes, strides)) = room.split_at_mut_checked(dims) {
        // SAFETY: as above; each of the two has room for the `dims` numbers that are written to it.
        unsafe {
            at_shape(raw, sizes.as_mut_ptr());
            if known.dense {
                at_stride(raw, strides.as_mut_ptr());
                address = at_data_ptr(raw).cast::<u8>().cast_const();
            }
        }
    }
    if *room != known.dims || address.addr() != known.address {
        return changed(tensor);
    }
    look_at_bytes(raw, known, address)
}

/// The count of writes, and some bytes, of a tensor that lies at the `address` that is known of it.
fn look_at_bytes(raw: *mut C_tensor, known: &Described, address: *const u8) -> u64 {
    // SAFETY: the tensor is one that `look` borrows, and this call only reads its count.
    let version = if known.counted { unsafe { atg__version(raw) }.cast_unsigned() } else { 0 };
    if known.readable == 0 {
        return version;
    }
    // SAFETY: the address is that of a block of so many readable bytes on the CPU when the tensor was described, and
    // `Variables::pins` keeps the storage that had it alive. As to writes meanwhile, see `bytes`.
    let bytes = unsafe { std::slice::from_raw_parts(address, known.readable) };
    version.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ if known.counted { probe(bytes) } else { xxh3_64(bytes) }
}

/// Of a tensor that is not as it was described.
fn changed(tensor: &Tensor) -> u64 {
    // Also forgets the error of a call that failed.
    let version = tensor.f_internal_version().map_or(0, i64::cast_unsigned);
    if !tensor.defined() || tensor.is_sparse() || tensor.is_mkldnn() {
        return !version;
    }
    let kind = tensor.f_kind().map_or(0, |kind| kind as i64);
    let mut described = [tensor.size(), tensor.stride(), vec![kind, version.cast_signed()]].concat();
    described.push((tensor.data_ptr().addr() as u64).cast_signed());
    let bytes: Vec<u8> = described.iter().flat_map(|number| number.to_le_bytes()).collect();
    !xxh3_64(&bytes)
}

/// Some bytes of all: both ends and the middle.
fn probe(bytes: &[u8]) -> u64 {
    let eight = |from: usize| {
        let part = bytes.get(from..).and_then(<[u8]>::first_chunk::<8>);
        part.map_or_else(|| xxh3_64(bytes), |part| u64::from_le_bytes(*part))
    };
    let (middle, last) = (bytes.len() / 16 * 8, bytes.len().saturating_sub(8));
    eight(0).rotate_left(17) ^ eight(middle).rotate_left(34) ^ eight(last).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
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
