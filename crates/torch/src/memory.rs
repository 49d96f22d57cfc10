//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Tensor};
use tensorcask_cache::layer::View;

use crate::error::Result;
use crate::error::{invalid, torch};

/// Bytes of all elements, if the tensor is a plain block of memory on the CPU.
fn block_len_bytes(tensor: &Tensor) -> Result<usize> {
    if !tensor.defined() {
        return Err(invalid("a tensor is undefined: pass a tensor that was made"));
    }
    let kind = tensor.f_kind().map_err(torch("read the kind of a tensor"))?;
    if !is_strided(tensor) || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
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
pub(crate) fn bytes(tensor: &Tensor) -> Result<&[u8]> {
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

/// The memory that the elements of a dense CPU tensor lie in. Nothing is copied.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(crate) fn view(tensor: &Tensor) -> Result<View<&[u8]>> {
    let refused = || invalid("the elements of a tensor were asked for: it has to be a dense tensor on the CPU");
    if !tensor.defined() || !is_strided(tensor) || tensor.device() != Device::Cpu {
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

/// The functions of `look.cpp`. Each takes a pointer to a `torch::Tensor`, and only reads what describes it.
mod ffi {
    use std::ffi::c_void;

    /// A tensor, and where its storage and its gradient are.
    #[derive(Debug, Clone, Copy)]
    #[repr(C)]
    pub(crate) struct Seen {
        pub(crate) tensor: usize,
        storage: usize,
        grad_slot: usize,
        pub(crate) grad: usize,
    }

    unsafe extern "C" {
        pub(crate) fn tensorcask_see(tensor: *const c_void) -> Seen;
        pub(crate) fn tensorcask_look(seen: *const Seen, len: usize, same: *mut bool) -> u64;
        pub(crate) fn tensorcask_look_at_grads(seen: *const Seen, len: usize, same: *mut bool) -> u64;
        pub(crate) safe fn tensorcask_graph_nodes() -> u64;
        pub(crate) fn tensorcask_look_closely(tensor: *const c_void, most_bytes: usize) -> u64;
        pub(crate) fn tensorcask_is_counted(tensor: *const c_void) -> bool;
        pub(crate) fn tensorcask_is_strided(tensor: *const c_void) -> bool;
        pub(crate) fn tensorcask_requires_grad(tensor: *const c_void) -> bool;
    }
}

/// Counts what was described, so that no sign is met again.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Tensors that are watched, and what they looked like when they were described.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Vec<ffi::Seen>,
    described: Vec<Described>,
    /// Writes that had been counted before that, to tensors and to their gradients.
    writes: [u64; 2],
    /// Where a thread was when it found the gradients as they were described; see [`progress`].
    checked_at: AtomicU64,
    /// Those whose writes are not counted.
    uncounted: Vec<usize>,
    generation: u64,
}

#[derive(Debug)]
struct Described {
    tensor: Tensor,
    /// Keep storage and gradient, so that none that replaces them can lie at their addresses.
    _storage: Tensor,
    _grad: Tensor,
    /// What a close look gave.
    hash: u64,
}

impl Watch {
    /// Describes `tensors`.
    pub(crate) fn new<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Self {
        let tensors: Vec<Tensor> = tensors.map(Tensor::shallow_clone).collect();
        // SAFETY: the borrow keeps the tensor alive.
        let see = |tensor: &Tensor| unsafe { ffi::tensorcask_see(tensor.as_ptr().cast()) };
        let mut watch = Self { seen: tensors.iter().map(see).collect(), ..Self::default() };
        let grad =
            |(tensor, seen): (&Tensor, &ffi::Seen)| if seen.grad == 0 { Tensor::default() } else { tensor.grad() };
        let grads: Vec<Tensor> = tensors.iter().zip(&watch.seen).map(grad).collect();
        watch.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        watch.writes = [watch.look().0, watch.look_at_grads().0];
        watch.described = tensors.into_iter().zip(grads).map(|(tensor, grad)| Described::new(tensor, grad)).collect();
        // SAFETY: the borrow keeps the tensor alive.
        let is_counted = |tensor: &Tensor| unsafe { ffi::tensorcask_is_counted(tensor.as_ptr().cast()) };
        let described = watch.described.iter().enumerate();
        watch.uncounted = described.filter(|(_, described)| !is_counted(&described.tensor)).map(|(at, _)| at).collect();
        // In the order of their addresses, which a processor can foresee.
        watch.seen.sort_unstable_by_key(|seen| seen.tensor);
        watch
    }

    /// The number of writes to all of them that libtorch has counted, and whether all have the storage they had. Two
    /// nanoseconds a tensor.
    fn look(&self) -> (u64, bool) {
        let mut same = true;
        // SAFETY: `described`, or `new`, keeps each of the `len` tensors alive.
        let writes = unsafe { ffi::tensorcask_look(self.seen.as_ptr(), self.seen.len(), &raw mut same) };
        (writes, same)
    }

    /// The same of the gradients.
    fn look_at_grads(&self) -> (u64, bool) {
        let mut same = true;
        // SAFETY: as in `look`; a tensor keeps its gradient.
        let writes = unsafe { ffi::tensorcask_look_at_grads(self.seen.as_ptr(), self.seen.len(), &raw mut same) };
        (writes, same)
    }

    /// Whether no backward pass that started in this thread has left gradients.
    fn grads_are_same(&self) -> bool {
        let now = progress();
        if self.checked_at.load(Ordering::Relaxed) == now {
            return true;
        }
        let same = self.look_at_grads() == (self.writes[1], true);
        if same {
            self.checked_at.store(now, Ordering::Relaxed);
        }
        same
    }

    /// A number that changes with the tensors. Those at `closely` are looked at closely, and all if one of them was
    /// written to, or got a gradient, since they were described.
    pub(crate) fn sign(&self, closely: impl Iterator<Item = usize>) -> u64 {
        let (writes, same) = self.look();
        let add = |sign: u64, difference: u64| sign.rotate_left(5).wrapping_add(difference);
        let differences = if same && writes == self.writes[0] && self.grads_are_same() {
            let closely = self.uncounted.iter().copied().chain(closely);
            closely.filter_map(|at| self.described.get(at)).map(Described::difference).fold(0, add)
        } else {
            self.described.iter().map(Described::difference).fold(u64::from(!same), add)
        };
        (writes ^ self.generation.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ differences
    }
}

/// Which thread this is, and how many nodes of autograd graphs it has made: there is no backward pass without a graph.
fn progress() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    let thread = THREAD.try_with(|thread| *thread).unwrap_or(0);
    thread.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(ffi::tensorcask_graph_nodes()) | 1 << 63
}

impl Described {
    fn new(tensor: Tensor, grad: Tensor) -> Self {
        Self { hash: look_closely(&tensor), _storage: tensor.f_detach().unwrap_or_default(), _grad: grad, tensor }
    }

    /// 0 if a close look gives what it gave, else a number that tells what it gives.
    fn difference(&self) -> u64 {
        let hash = look_closely(&self.tensor);
        if hash == self.hash { 0 } else { hash | 1 }
    }
}

/// A hash of dtype, layout, sizes, strides, address, gradients, and some bytes of a block of memory on the CPU. Of a
/// tensor that was made in inference mode, whose writes are not counted, all bytes of up to 16 KiB. As to writes
/// meanwhile, see [`bytes`].
fn look_closely(tensor: &Tensor) -> u64 {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_look_closely(tensor.as_ptr().cast(), 16 << 10) }
}

/// Whether a tensor has strides: it is neither sparse nor nested, nor of another library.
pub(crate) fn is_strided(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_is_strided(tensor.as_ptr().cast()) }
}

/// Whether an optimizer could change the tensor.
pub(crate) fn requires_grad(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_requires_grad(tensor.as_ptr().cast()) }
}

/// The elements of a dense contiguous CPU tensor, as bytes to be written. Only for tensors that this crate made and
/// has not handed out.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(crate) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: as in `bytes`; the tensor was made by the caller, so nothing else refers to its storage, and the
    // exclusive borrow holds that. Memory that libtorch allocated holds some bytes, whichever they are.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), len) })
}
