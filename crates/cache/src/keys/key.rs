//! Keys of samples, by id or by content.
//!
//! A content key is the 128-bit [XXH3](https://xxhash.com) hash of a header (a domain, the argument's position or name,
//! type, dtype and shape, each length-prefixed) and of the digests of the sample's bytes in each tensor. Swapped
//! arguments, rolled elements and plain values with the same sum therefore give different keys.

use xxhash_rust::xxh3::xxh3_128;

use tensorcask::{Key, KeyKind, KeyRef, Keys};

use super::ids::Ids;
use super::strided::Samples;
use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::identity::canonical::Canonical;
use crate::values::input::{Argument, Inputs};

/// How much of a sample's bytes a content key covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// All bytes.
    #[default]
    Full,
    /// The first and the last `edge_bytes`, and between them 64 bytes out of every `stride_bytes`. Samples that differ
    /// only in other bytes share a key and therefore **an output**. Use this only for inputs that differ in most of
    /// their bytes, such as photographs.
    Sampled {
        /// Bytes covered at either end.
        edge_bytes: usize,
        /// Distance in bytes between the starts of the 64-byte pieces; at least 64.
        stride_bytes: usize,
    },
}

const SAMPLE_BYTES: usize = 64;

impl Content {
    fn digest(self, bytes: &[u8]) -> u128 {
        let Self::Sampled { edge_bytes, stride_bytes } = self else { return xxh3_128(bytes) };
        let ends = edge_bytes.saturating_mul(2);
        let Some(middle) = bytes.get(edge_bytes..bytes.len().saturating_sub(edge_bytes)).filter(|_| bytes.len() > ends)
        else {
            return xxh3_128(bytes);
        };
        let mut kept = Vec::with_capacity(ends + middle.len() / stride_bytes.max(1) * SAMPLE_BYTES + SAMPLE_BYTES);
        kept.extend_from_slice(bytes.get(..edge_bytes).unwrap_or_default());
        for stride in middle.chunks(stride_bytes.max(SAMPLE_BYTES)) {
            kept.extend_from_slice(stride.get(..SAMPLE_BYTES).unwrap_or(stride));
        }
        kept.extend_from_slice(bytes.get(bytes.len() - edge_bytes..).unwrap_or_default());
        xxh3_128(&kept)
    }
}

/// Adds an argument without the bytes of its samples. With an id, a batched tensor adds only its place, as the id names
/// the sample.
fn add_argument<F: Framework>(
    to: Canonical,
    name: Option<&str>,
    argument: &Argument<F>,
    by_id: bool,
) -> Result<Canonical> {
    let to = match name {
        Some(name) => to.part(b"named").part(name.as_bytes()),
        None => to.part(b"positional"),
    };
    Ok(match argument {
        Argument::Tensor(_) | Argument::Batched if by_id => to.part(b"tensor"),
        Argument::Batched => return Err(invalid("the place of a tensor was passed where its content is the key")),
        Argument::Tensor(tensor) => add_tensor::<F>(to.part(b"tensor"), tensor, 1)?,
        Argument::Shared(tensor) => {
            // A shared tensor counts with all its bytes, as it applies to every sample.
            let host = F::host(tensor)?;
            let digest = xxh3_128(&F::bytes(&host)?);
            add_tensor::<F>(to.part(b"shared"), tensor, 0)?.part(&digest.to_le_bytes())
        }
        Argument::Int(number) => to.part(b"int").part(&number.to_le_bytes()),
        Argument::Float(number) => to.part(b"float").part(&number.to_bits().to_le_bytes()),
        Argument::Str(text) => to.part(b"str").part(text.as_bytes()),
        Argument::Bool(flag) => to.part(b"bool").part(&[u8::from(*flag)]),
        Argument::Null => to.part(b"null"),
    })
}

fn add_tensor<F: Framework>(to: Canonical, tensor: &F::Tensor, skip_dims: usize) -> Result<Canonical> {
    let to = to.part(F::key_name(tensor)?.as_bytes());
    let dims = F::shape(tensor).into_iter().skip(skip_dims);
    Ok(to.part(&dims.flat_map(|dim| (dim as u64).to_le_bytes()).collect::<Vec<u8>>()))
}

/// A hash of the call without its samples: the arguments, and the dtype and shape of a sample.
pub(crate) fn layout<F: Framework>(inputs: &Inputs<F>) -> Result<u128> {
    let mut arguments = inputs.sorted().into_iter();
    let header = arguments
        .try_fold(Canonical::new("layout"), |header, (name, argument)| add_argument(header, name, argument, false))?;
    Ok(header.hash())
}

/// The keys of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BatchKeys {
    Ids(Ids),
    /// 128-bit digests of the content, or of an id with further arguments or a variant.
    Hashed(Vec<[u8; 16]>),
}

impl BatchKeys {
    /// Keys by id. For a call of one tensor these are the ids themselves. Other arguments and a variant change the
    /// output, so they are hashed into the key together with their places.
    pub(crate) fn by_id<F: Framework>(ids: Ids, inputs: &Inputs<F>, variant: u32) -> Result<Self> {
        let arguments = inputs.sorted();
        if variant == 0 && matches!(arguments.as_slice(), [(None, Argument::Tensor(_) | Argument::Batched)]) {
            return Ok(Self::Ids(ids));
        }
        let mut header = Canonical::new("id").part(&variant.to_le_bytes());
        for (name, argument) in arguments {
            header = add_argument(header, name, argument, true)?;
        }
        let header = header.hash().to_le_bytes();
        let hash = |kind: &str, id: &[u8]| Canonical::new(kind).part(&header).part(id).hash().to_le_bytes();
        Ok(Self::Hashed(match &ids {
            Ids::Str(ids) => ids.iter().map(|id| hash("str", id.as_bytes())).collect(),
            Ids::Int(ids) => ids.iter().map(|id| hash("int", &id.to_le_bytes())).collect(),
        }))
    }

    /// Keys by content. O(bytes).
    pub(crate) fn by_content<F: Framework>(
        inputs: &Inputs<F>,
        batch: usize,
        content: Content,
        variant: u32,
    ) -> Result<Self> {
        let mut header = Canonical::new("content").part(&variant.to_le_bytes());
        let mut tensors = Vec::new();
        for (name, argument) in inputs.sorted() {
            header = add_argument(header, name, argument, false)?;
            if let Argument::Tensor(tensor) = argument {
                tensors.push(F::host_of_any_layout(tensor)?);
            }
        }
        if let Content::Sampled { edge_bytes, stride_bytes } = content {
            let numbers = [edge_bytes as u64, stride_bytes as u64];
            header = header.part(b"sampled").part(&numbers.map(u64::to_le_bytes).concat());
        }
        let header = header.hash().to_le_bytes();
        let views = tensors.iter().map(F::view).collect::<Result<Vec<_>>>()?;
        if !views.iter().all(|view| view.is_of(batch)) {
            return Err(invalid("the adapter of the tensor library returned a view that does not match the batch"));
        }
        let mut samples: Vec<Samples<F::Bytes<'_>>> = views.into_iter().map(Samples::new).collect();
        let mut joined = Vec::with_capacity(16 * (samples.len() + 1));
        let key = |row: usize| {
            joined.clear();
            joined.extend_from_slice(&header);
            for samples in &mut samples {
                joined.extend_from_slice(&content.digest(samples.bytes(row)).to_le_bytes());
            }
            xxh3_128(&joined).to_le_bytes()
        };
        Ok(Self::Hashed((0..batch).map(key).collect()))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Hashed(keys) => keys.len(),
        }
    }

    pub(crate) fn select(&self, positions: &[usize]) -> Self {
        match self {
            Self::Ids(ids) => Self::Ids(ids.select(positions)),
            Self::Hashed(keys) => Self::Hashed(positions.iter().filter_map(|&at| keys.get(at).copied()).collect()),
        }
    }

    pub(crate) const fn kind(&self) -> KeyKind {
        match self {
            Self::Ids(Ids::Str(_)) => KeyKind::Str,
            Self::Ids(Ids::Int(_)) => KeyKind::U64,
            Self::Hashed(_) => KeyKind::Bytes,
        }
    }

    /// Calls `f` with the keys in the form that the store takes.
    pub(crate) fn with<T>(&self, f: impl FnOnce(Keys<'_>) -> T) -> T {
        match self {
            Self::Ids(Ids::Str(ids)) => f(Keys::Strings(ids)),
            Self::Ids(Ids::Int(ids)) => f(Keys::U64(ids)),
            Self::Hashed(keys) => f(Keys::Slices(&keys.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>())),
        }
    }

    /// The key at `position`.
    pub(crate) fn get(&self, position: usize) -> Option<Key> {
        let at = match self {
            Self::Ids(Ids::Str(ids)) => KeyRef::Str(ids.get(position)?),
            Self::Ids(Ids::Int(ids)) => KeyRef::U64(*ids.get(position)?),
            Self::Hashed(keys) => KeyRef::Bytes(keys.get(position)?),
        };
        Some(at.to_key())
    }

    /// The positions of the first occurrence of each key, and for each position the index of its key among those;
    /// `None` if all keys are distinct.
    pub(crate) fn unique(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        fn find<K: std::hash::Hash + Eq>(keys: impl Iterator<Item = K>) -> Option<(Vec<usize>, Vec<usize>)> {
            let mut places = std::collections::HashMap::<K, usize, xxhash_rust::xxh3::Xxh3DefaultBuilder>::default();
            let (mut firsts, mut of) = (Vec::new(), Vec::new());
            for (position, key) in keys.enumerate() {
                let place = *places.entry(key).or_insert_with(|| {
                    firsts.push(position);
                    firsts.len() - 1
                });
                of.push(place);
            }
            (firsts.len() < of.len()).then_some((firsts, of))
        }
        match self {
            Self::Ids(Ids::Str(ids)) => find(ids.iter().map(String::as_str)),
            Self::Ids(Ids::Int(ids)) => find(ids.iter().copied()),
            Self::Hashed(keys) => find(keys.iter().copied()),
        }
    }
}
