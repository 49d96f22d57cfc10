//! Reads the elements of a non-contiguous tensor in order, such as images with channels last, transposed tensors and
//! expanded tensors.
//!
//! A sample is gathered into a buffer that fits into the processor's caches. Adjacent dimensions are joined. If the
//! innermost dimension is not the one that is contiguous in memory, the last two are transposed block by block.

use std::ops::Deref;

use bytemuck::Pod;

use crate::framework::View;

/// Bytes of each channel in a block, which stays in the fastest cache while it is read and written.
const BLOCK_BYTES: usize = 6 * 1024;

/// A dimension: its length, and its stride in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dim {
    len: usize,
    stride: usize,
}

/// Gathers samples of a tensor.
#[derive(Debug)]
pub(crate) struct Samples<B> {
    view: View<B>,
    batch_stride: usize,
    /// The dimensions of a sample, outermost first; never empty.
    dims: Vec<Dim>,
    buffer: Vec<u64>,
    /// The index of the sample in the buffer.
    gathered: Option<usize>,
}

impl<B: Deref<Target = [u8]>> Samples<B> {
    /// `view` is a tensor whose first dimension is the batch.
    pub(crate) fn new(view: View<B>) -> Self {
        let dims = view.sizes.iter().zip(&view.strides).map(|(&len, &stride)| Dim { len, stride });
        let mut dims = dims.collect::<Vec<_>>().into_iter();
        let batch_stride = dims.next().map_or(0, |batch| batch.stride);
        let mut joined: Vec<Dim> = Vec::new();
        for dim in dims.filter(|dim| dim.len != 1) {
            match joined.last_mut() {
                Some(outer) if outer.stride == dim.len * dim.stride => {
                    *outer = Dim { len: outer.len * dim.len, stride: dim.stride };
                }
                _ => joined.push(dim),
            }
        }
        if joined.is_empty() {
            joined.push(Dim { len: 1, stride: 1 });
        }
        Self { view, batch_stride, dims: joined, buffer: Vec::new(), gathered: None }
    }

    /// The bytes of sample `at`, as if the tensor were contiguous.
    pub(crate) fn bytes(&mut self, at: usize) -> &[u8] {
        let width = self.view.width;
        let len = self.dims.iter().map(|dim| dim.len).product::<usize>() * width;
        // All samples of an expanded batch are the same.
        let origin = at * self.batch_stride;
        let bytes = self.view.bytes.get(origin * width..).unwrap_or_default();
        if let [Dim { stride: 1, .. }] = self.dims.as_slice() {
            return bytes.get(..len).unwrap_or_default();
        }
        if self.gathered != Some(origin) {
            self.buffer.resize(len.div_ceil(8), 0);
            let to = bytemuck::cast_slice_mut::<u64, u8>(&mut self.buffer).get_mut(..len).unwrap_or_default();
            match width {
                1 => gather_all::<u8>(bytes, &self.dims, to),
                2 => gather_all::<u16>(bytes, &self.dims, to),
                4 => gather_all::<u32>(bytes, &self.dims, to),
                8 => gather_all::<u64>(bytes, &self.dims, to),
                _ => gather_wide(bytes, &self.dims, width, to),
            }
            self.gathered = Some(origin);
        }
        bytemuck::cast_slice::<u64, u8>(&self.buffer).get(..len).unwrap_or_default()
    }
}

fn gather_all<T: Pod>(bytes: &[u8], dims: &[Dim], to: &mut [u8]) {
    let whole = bytes.get(..bytes.len() / size_of::<T>() * size_of::<T>()).unwrap_or_default();
    match (bytemuck::try_cast_slice::<u8, T>(whole), bytemuck::try_cast_slice_mut::<u8, T>(&mut *to)) {
        (Ok(from), Ok(to)) => gather(from, dims, to),
        // The storage is not aligned to its elements: it is memory that the library did not allocate.
        _ => gather_wide(bytes, dims, size_of::<T>(), to),
    }
}

/// Gathers elements of any width.
fn gather_wide(bytes: &[u8], dims: &[Dim], width: usize, to: &mut [u8]) {
    let Some((first, rest)) = dims.split_first() else {
        if let (Some(from), Some(to)) = (bytes.get(..width), to.get_mut(..width)) {
            to.copy_from_slice(from);
        }
        return;
    };
    let part = to.len() / first.len.max(1);
    for (at, to) in to.chunks_exact_mut(part.max(1)).enumerate() {
        gather_wide(bytes.get(at * first.stride * width..).unwrap_or_default(), rest, width, to);
    }
}

/// Gathers the elements of `from` at `dims`, in order.
fn gather<T: Pod>(from: &[T], dims: &[Dim], to: &mut [T]) {
    match dims {
        [] => {}
        [row] => gather_row(from, *row, to),
        // The outer of these two dimensions is contiguous in memory: channels of images, columns of a matrix.
        [outer, inner] if outer.stride == 1 && inner.stride >= outer.len => exchange(from, *outer, *inner, to),
        [outer, rest @ ..] => {
            let part = to.len() / outer.len.max(1);
            for (at, to) in to.chunks_exact_mut(part.max(1)).enumerate() {
                gather(from.get(at * outer.stride..).unwrap_or_default(), rest, to);
            }
        }
    }
}

fn gather_row<T: Pod>(from: &[T], row: Dim, to: &mut [T]) {
    match row.stride {
        0 => to.fill(from.first().copied().unwrap_or_else(T::zeroed)),
        1 => to.copy_from_slice(from.get(..to.len()).unwrap_or_default()),
        stride => to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, from)| *to = *from),
    }
}

/// `to[outer][inner] = from[inner * stride + outer]`.
fn exchange<T: Pod>(from: &[T], outer: Dim, inner: Dim, to: &mut [T]) {
    if inner.stride == outer.len {
        match outer.len {
            2 => return planes::<T, 2>(from, to, inner.len),
            3 => return planes::<T, 3>(from, to, inner.len),
            4 => return planes::<T, 4>(from, to, inner.len),
            _ => {}
        }
    }
    // Blocks of 16 by 16 elements: whole cache lines are read and written.
    const SIDE: usize = 16;
    for inner_from in (0..inner.len).step_by(SIDE) {
        let inner_len = SIDE.min(inner.len - inner_from);
        for outer_from in (0..outer.len).step_by(SIDE) {
            let outer_len = SIDE.min(outer.len - outer_from);
            let corner = from.get(inner_from * inner.stride + outer_from..).unwrap_or_default();
            for at in 0..outer_len {
                let begin = (outer_from + at) * inner.len + inner_from;
                let to = to.get_mut(begin..begin + inner_len).unwrap_or_default();
                let column = corner.get(at..).unwrap_or_default().iter().step_by(inner.stride);
                to.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// Deinterleaves two, three or four channels into planes of `len` elements each.
fn planes<T: Pod, const N: usize>(from: &[T], to: &mut [T], len: usize) {
    let (places, _) = from.as_chunks::<N>();
    let block_len = BLOCK_BYTES / size_of::<T>();
    let mut planes = to.chunks_exact_mut(len.max(1));
    let mut planes: [&mut [T]; N] = std::array::from_fn(|_| planes.next().unwrap_or_default());
    for (block, places) in places.get(..len).unwrap_or_default().chunks(block_len).enumerate() {
        for (channel, plane) in planes.iter_mut().enumerate() {
            let to = plane.get_mut(block * block_len..).unwrap_or_default();
            match channel {
                0 => plane_of::<T, N, 0>(places, to),
                1 => plane_of::<T, N, 1>(places, to),
                2 => plane_of::<T, N, 2>(places, to),
                _ => plane_of::<T, N, 3>(places, to),
            }
        }
    }
}

/// Copies one channel of `places`.
fn plane_of<T: Pod, const N: usize, const CHANNEL: usize>(places: &[[T; N]], to: &mut [T]) {
    /// Compiles to shuffles of whole registers. It must not be inlined: the compiler could then not rule out that the
    /// two slices overlap.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    #[inline(never)]
    fn with_avx2<T: Pod, const N: usize, const CHANNEL: usize>(places: &[[T; N]], to: &mut [T]) {
        copy::<T, N, CHANNEL>(places, to);
    }
    #[inline(always)]
    fn copy<T: Pod, const N: usize, const CHANNEL: usize>(places: &[[T; N]], to: &mut [T]) {
        for (to, place) in to.iter_mut().zip(places) {
            *to = place.get(CHANNEL).copied().unwrap_or_else(T::zeroed);
        }
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "the compiler does not know which processor this will run on")]
        // SAFETY: the processor supports the features that the function was compiled for.
        return unsafe { with_avx2::<T, N, CHANNEL>(places, to) };
    }
    copy::<T, N, CHANNEL>(places, to);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares every layout of three dimensions with the definition.
    #[test]
    fn any_layout_is_gathered_in_order() {
        fn check<T: Pod + PartialEq + std::fmt::Debug>(of: impl Fn(usize) -> T) {
            let memory: Vec<T> = (0..200_000).map(of).collect();
            let bytes = bytemuck::cast_slice(&memory);
            let layouts = [
                ([3, 20, 31], [1, 93, 3]),
                ([3, 40, 40], [1, 120, 3]),
                ([2, 33, 17], [1, 34, 2]),
                ([4, 7, 100], [1, 400, 4]),
                ([4, 7, 100], [1, 500, 5]),
                ([37, 5, 29], [1, 37 * 29, 37]),
                ([37, 5, 29], [0, 29, 1]),
                ([5, 37, 29], [37 * 29, 1, 37]),
                ([5, 37, 29], [40 * 30, 30, 1]),
                ([5, 6, 7], [1, 0, 0]),
                ([5, 6, 7], [0, 0, 3]),
                ([1, 1, 1], [9, 9, 9]),
                ([5, 1, 7], [2, 1, 100]),
                ([0, 4, 4], [16, 4, 1]),
            ];
            for (sizes, strides) in layouts {
                for batch_stride in [0, 5000] {
                    let view = View {
                        bytes,
                        width: size_of::<T>(),
                        sizes: [vec![3], sizes.to_vec()].concat(),
                        strides: [vec![batch_stride], strides.to_vec()].concat(),
                    };
                    let mut samples = Samples::new(view);
                    for at in 0..3 {
                        let places = (0..sizes[0])
                            .flat_map(|a| (0..sizes[1]).flat_map(move |b| (0..sizes[2]).map(move |c| [a, b, c])));
                        let place = |[a, b, c]: [usize; 3]| {
                            memory[at * batch_stride + a * strides[0] + b * strides[1] + c * strides[2]]
                        };
                        let expected: Vec<T> = places.map(place).collect();
                        let expected: &[u8] = bytemuck::cast_slice(&expected);
                        assert!(samples.bytes(at) == expected, "{sizes:?} {strides:?} {batch_stride}");
                    }
                }
            }
        }
        check(|n| n as u8);
        check(|n| n as u16);
        check(|n| n as u32);
        check(|n| n as u64);
        check(|n| n as u128);
    }
}
