//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use tch::{Device, Tensor};
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

/// The functions of `look.cpp`. Each takes a pointer to a `torch::Tensor`.
mod ffi {
    use std::ffi::c_void;

    /// A tensor, and where its storage is described.
    #[derive(Debug, Clone, Copy)]
    #[repr(C)]
    pub(super) struct Seen {
        pub(super) tensor: usize,
        storage: usize,
    }

    unsafe extern "C" {
        pub(super) fn tensorcask_see(tensor: *const c_void) -> Seen;
        pub(super) fn tensorcask_counted(tensor: *const c_void) -> bool;
        pub(super) fn tensorcask_layout(tensor: *const c_void) -> u64;
        pub(super) fn tensorcask_requires_grad(tensor: *const c_void) -> bool;
        pub(super) fn tensorcask_look(seen: *const Seen, len: usize, same: *mut bool) -> u64;
    }
}

/// Tensors that are watched, and what they looked like when they were described.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Vec<ffi::Seen>,
    described: Vec<Described>,
    /// Writes that had been counted before that.
    writes: u64,
    /// Those whose writes are not counted.
    uncounted: Vec<usize>,
    /// Those whose bytes each call looks at.
    frequent: Vec<Readable>,
}

/// Bytes of a tensor on the CPU: some in the middle, or all if libtorch does not count the writes to it, as to none that
/// was made in inference mode. Of the others, only the statistics of a batch normalisation are written without being
/// counted, and they change in all elements.
#[derive(Debug, Clone, Copy)]
struct Readable {
    address: usize,
    len: usize,
    /// Of the bytes, as they were.
    hash: u64,
}

#[derive(Debug)]
struct Described {
    tensor: Tensor,
    /// Keeps the storage, so that none that replaces it can lie at its address.
    _storage: Tensor,
    /// A hash of dtype, sizes, strides and address.
    layout: u64,
    /// Of a block of memory on the CPU.
    readable: Option<Readable>,
    counted: bool,
}

impl Watch {
    /// Describes `tensors`. Each call looks at bytes of those at `frequent`. Of those whose writes are not counted, it
    /// looks at all bytes, if they are of up to `small` elements.
    pub(super) fn new<'a>(tensors: impl Iterator<Item = &'a Tensor>, small: usize, frequent: &[usize]) -> Self {
        let tensors: Vec<Tensor> = tensors.map(Tensor::shallow_clone).collect();
        // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
        let see = |tensor: &Tensor| unsafe { ffi::tensorcask_see(tensor.as_ptr().cast()) };
        let mut watch = Self { seen: tensors.iter().map(see).collect(), ..Self::default() };
        // In the order of their addresses, which a processor can foresee.
        watch.seen.sort_unstable_by_key(|seen| seen.tensor);
        (watch.writes, _) = watch.look();
        watch.described = tensors.into_iter().map(|tensor| Described::new(tensor, small)).collect();
        let described = watch.described.iter().enumerate();
        watch.uncounted = described.filter(|(_, tensor)| !tensor.counted).map(|(at, _)| at).collect();
        let frequent = frequent.iter().filter_map(|&at| watch.described.get(at)).filter(|tensor| tensor.counted);
        watch.frequent = frequent.filter_map(|tensor| tensor.readable).collect();
        watch.frequent.sort_unstable_by_key(|readable| readable.address);
        watch
    }

    /// The number of writes to all of them that libtorch has counted, and whether all have the storage they had. Two
    /// nanoseconds a tensor.
    fn look(&self) -> (u64, bool) {
        let mut same = true;
        // SAFETY: `described`, or `new`, keeps each of the `len` tensors alive, and the call only reads.
        let writes = unsafe { ffi::tensorcask_look(self.seen.as_ptr(), self.seen.len(), &raw mut same) };
        (writes, same)
    }

    /// A number that changes with the tensors. Those at `closely` are looked at closely, and all if one of them was
    /// written to since they were described.
    pub(super) fn sign(&self, closely: impl Iterator<Item = usize>) -> u64 {
        let (writes, same) = self.look();
        let add = |sign: u64, difference: u64| sign.rotate_left(5).wrapping_add(difference);
        let differences = if same && writes == self.writes {
            let closely = self.uncounted.iter().copied().chain(closely);
            let sign = closely.filter_map(|at| self.described.get(at)).map(Described::difference).fold(0, add);
            // SAFETY: writes to these are counted, and none was written to: they lie where they lay.
            self.frequent.iter().map(|readable| unsafe { readable.difference() }).fold(sign, add)
        } else {
            self.described.iter().map(Described::difference).fold(u64::from(!same), add)
        };
        writes.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ differences
    }
}

impl Described {
    fn new(tensor: Tensor, small: usize) -> Self {
        // SAFETY: the tensor is alive, and the call only reads what describes it.
        let counted = unsafe { ffi::tensorcask_counted(tensor.as_ptr().cast()) };
        let layout = layout(&tensor);
        let readable = bytes(&tensor).ok().filter(|bytes| !bytes.is_empty() && (counted || tensor.numel() <= small));
        let readable = readable.map(|bytes| Readable::new(bytes, counted));
        Self { layout, counted, readable, _storage: tensor.f_detach().unwrap_or_default(), tensor }
    }

    /// 0 if layout and bytes are what they were, else a number that tells what they are.
    fn difference(&self) -> u64 {
        let layout = layout(&self.tensor);
        if layout != self.layout {
            return layout | 1;
        }
        // SAFETY: the layout tells that the tensor lies where it lay.
        self.readable.map_or(0, |readable| unsafe { readable.difference() })
    }
}

impl Readable {
    const SOME_BYTES: usize = 32;

    fn new(bytes: &[u8], counted: bool) -> Self {
        let middle = bytes.len() / 128 * 64;
        let some = bytes.get(middle..middle + Self::SOME_BYTES).filter(|_| counted);
        let bytes = some.unwrap_or(bytes);
        Self { address: bytes.as_ptr().expose_provenance(), len: bytes.len(), hash: Self::hash(bytes) }
    }

    #[inline]
    fn hash(bytes: &[u8]) -> u64 {
        match <&[u8; Self::SOME_BYTES]>::try_from(bytes) {
            Ok(bytes) => {
                let (words, _) = bytes.as_chunks::<8>();
                words.iter().fold(0, |sum, word| sum.rotate_left(9) ^ u64::from_le_bytes(*word))
            }
            Err(_) => xxh3_64(bytes),
        }
    }

    /// 0 if the bytes are what they were, else a number that tells what they are.
    ///
    /// # Safety
    /// The tensor has to lie where it lay. As to writes meanwhile, see [`bytes`].
    unsafe fn difference(self) -> u64 {
        // SAFETY: they were readable, and lie in a storage that is kept.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), self.len) };
        let hash = Self::hash(bytes);
        if hash == self.hash { 0 } else { hash | 1 }
    }
}

/// A hash of dtype, sizes, strides and address.
fn layout(tensor: &Tensor) -> u64 {
    // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
    unsafe { ffi::tensorcask_layout(tensor.as_ptr().cast()) }
}

/// Whether an optimizer could change the tensor.
pub(super) fn requires_grad(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive, and this call only reads what describes it.
    unsafe { ffi::tensorcask_requires_grad(tensor.as_ptr().cast()) }
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
