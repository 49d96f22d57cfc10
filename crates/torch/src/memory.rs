//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Tensor};
use tensorcask_cache::layer::View;

use crate::error::Result;
use crate::error::{invalid, torch};

/// The length of all elements in bytes, if the tensor is a dense contiguous block of memory on the CPU.
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

/// The bytes of a dense contiguous CPU tensor. Nothing is copied.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(crate) fn bytes(tensor: &Tensor) -> Result<&[u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&[]);
    }
    // SAFETY: a contiguous CPU tensor of `numel` elements owns `len` readable bytes from its data pointer on. They stay
    // valid while the tensor lives, which the borrow guarantees. `u8` needs no alignment. A concurrent write to the
    // same storage through a shallow clone is a data race in libtorch itself, which its users must avoid.
    Ok(unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) })
}

/// The memory that the elements of a dense CPU tensor span. Nothing is copied.
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
    // SAFETY: strides are not negative, so all elements lie between the first and the farthest, in one storage that the
    // tensor keeps alive. For concurrent writes see `bytes`.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) };
    Ok(View { bytes, width, sizes, strides })
}

/// The functions of `look.cpp`. Each takes a pointer to a `torch::Tensor`, and reads only its metadata.
mod ffi {
    use std::ffi::c_void;

    /// A tensor, and the addresses of its storage and its gradient.
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

/// Numbers the descriptions, so that no sign occurs twice.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Tensors that are watched, and their state when they were described.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Vec<ffi::Seen>,
    described: Vec<Described>,
    /// The write counts when they were described, of tensors and of their gradients.
    writes: [u64; 2],
    /// The [`progress`] of a thread when it last found the gradients unchanged.
    checked_at: AtomicU64,
    /// Positions of the tensors whose writes are not counted.
    uncounted: Vec<usize>,
    generation: u64,
}

#[derive(Debug)]
struct Described {
    tensor: Tensor,
    /// Keep the storage and the gradient alive, so that a replacement cannot have the same address.
    _storage: Tensor,
    _grad: Tensor,
    /// The hash by [`look_closely`].
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
        // Sorted by address, so that the processor can prefetch them.
        watch.seen.sort_unstable_by_key(|seen| seen.tensor);
        watch
    }

    /// The number of writes to all tensors that libtorch has counted, and whether all have their recorded storage.
    /// Takes two nanoseconds per tensor.
    fn look(&self) -> (u64, bool) {
        let mut same = true;
        // SAFETY: `described`, or `new`, keeps each of the `len` tensors alive.
        let writes = unsafe { ffi::tensorcask_look(self.seen.as_ptr(), self.seen.len(), &raw mut same) };
        (writes, same)
    }

    /// The same for the gradients.
    fn look_at_grads(&self) -> (u64, bool) {
        let mut same = true;
        // SAFETY: as in `look`; a tensor keeps its gradient alive.
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

    /// A number that changes with the tensors. The tensors at `closely` are inspected. All are, if one of them was
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

/// Identifies this thread and the number of autograd nodes that it has created. There is no backward pass without
/// nodes.
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

    /// 0 if the hash is the recorded one, else a number derived from the present hash.
    fn difference(&self) -> u64 {
        let hash = look_closely(&self.tensor);
        if hash == self.hash { 0 } else { hash | 1 }
    }
}

/// A hash of dtype, layout, sizes, strides, address, gradients, and some bytes of a CPU tensor. For a tensor that was
/// created in inference mode, whose writes are not counted, it covers all of up to 16 KiB. For concurrent writes see
/// [`bytes`].
fn look_closely(tensor: &Tensor) -> u64 {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_look_closely(tensor.as_ptr().cast(), 16 << 10) }
}

/// Whether a tensor has strides: it is neither sparse nor nested, and its memory is libtorch's own.
pub(crate) fn is_strided(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_is_strided(tensor.as_ptr().cast()) }
}

/// Whether an optimizer could change the tensor.
pub(crate) fn requires_grad(tensor: &Tensor) -> bool {
    // SAFETY: the borrow keeps the tensor alive.
    unsafe { ffi::tensorcask_requires_grad(tensor.as_ptr().cast()) }
}

/// The bytes of a dense contiguous CPU tensor, for writing. Only for tensors that this crate made and has not handed
/// out.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(crate) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: as in `bytes`. The caller made the tensor, so nothing else refers to its storage, and the exclusive
    // borrow keeps it so. Memory that libtorch allocated has unspecified but readable bytes.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), len) })
}
