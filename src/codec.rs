//! How a row's bytes are packed: each row on its own, so that one row can be read without its neighbours.
//!
//! A packed row is one byte for the method, followed by the data:
//!
//! | first byte | what follows |
//! | --- | --- |
//! | 0 | the row as it is (also what an incompressible row becomes, under every codec) |
//! | 1 | a zstd frame of the row |
//! | 2 | a zstd frame of the byte-shuffled row |
//!
//! So a row grows by one byte at most, and unpacking needs to know neither the codec nor its level: only the element's
//! size (for the shuffle) and the row's size, both of which the schema or the row's shape give. Sizes that the data
//! itself claims are never trusted.
//!
//! **Byte shuffle** (the filter of HDF5 and Blosc): the first bytes of all elements, then all second bytes, and so on.
//! Bytes of equal significance resemble one another, so floats pack better. Bytes beyond the last whole element follow
//! the shuffled ones, in order.

use std::fmt;

use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, Result};

/// How a row's bytes are encoded before they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// Not packed: reads need no intermediate copy.
    #[default]
    None,
    /// zstd.
    Zstd {
        /// zstd's compression level; 0 is zstd's default. Reading is about as fast at every level.
        level: i32,
    },
    /// Byte shuffle, then zstd: packs floating-point rows better than zstd alone.
    ShuffleZstd {
        /// zstd's compression level; 0 is zstd's default. Reading is about as fast at every level.
        level: i32,
    },
}

impl Codec {
    /// The codec's name in a schema. Unpacking does not need the level, so the name omits it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd { .. } => "zstd",
            Self::ShuffleZstd { .. } => "shuffle-zstd",
        }
    }

    /// The same codec at zstd's default level, as a schema records it.
    pub(crate) const fn without_level(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Zstd { .. } => Self::Zstd { level: 0 },
            Self::ShuffleZstd { .. } => Self::ShuffleZstd { level: 0 },
        }
    }

    /// The codec called `name`, at zstd's default level; `None` for an unknown name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "zstd" => Some(Self::Zstd { level: 0 }),
            "shuffle-zstd" => Some(Self::ShuffleZstd { level: 0 }),
            _ => None,
        }
    }
}

// Serialised by name: only the writer needs the level.
impl serde::Serialize for Codec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Codec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown codec {name:?}")))
    }
}

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const SHUFFLED_ZSTD: u8 = 2;

/// Packs rows; reuses its buffers and zstd's tables.
pub(crate) struct Encoder {
    codec: Codec,
    zstd: Option<Compressor<'static>>,
    shuffled: Vec<u8>,
    packed: Vec<u8>,
}

impl Encoder {
    /// # Errors
    /// [`Error::Invalid`] if zstd has no such level or runs out of memory.
    pub(crate) fn new(codec: Codec) -> Result<Self> {
        let zstd = match codec {
            Codec::None => None,
            Codec::Zstd { level } | Codec::ShuffleZstd { level } => Some(compressor(level)?),
        };
        Ok(Self { codec, zstd, shuffled: Vec::new(), packed: Vec::new() })
    }

    /// Appends `raw`, packed, to `out`: at most `raw.len() + 1` bytes. `element_len_bytes` 0 and 1 shuffle nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] if zstd fails, which it does only if it runs out of memory.
    pub(crate) fn encode(&mut self, raw: &[u8], element_len_bytes: usize, out: &mut Vec<u8>) -> Result<()> {
        let shuffles = matches!(self.codec, Codec::ShuffleZstd { .. }) && element_len_bytes > 1;
        if let Some(zstd) = &mut self.zstd {
            let input = if shuffles {
                self.shuffled.resize(raw.len(), 0);
                shuffle(raw, element_len_bytes, &mut self.shuffled);
                &self.shuffled
            } else {
                raw
            };
            self.packed.clear();
            self.packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
            let packed = zstd.compress_to_buffer(input, &mut self.packed);
            packed.map_err(|e| Error::invalid(format!("zstd could not pack a row of {} bytes: {e}", raw.len())))?;
            if self.packed.len() < raw.len() {
                out.push(if shuffles { SHUFFLED_ZSTD } else { ZSTD });
                out.extend_from_slice(&self.packed);
                return Ok(());
            }
        }
        out.push(RAW);
        out.extend_from_slice(raw);
        Ok(())
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("codec", &self.codec).finish_non_exhaustive()
    }
}

fn compressor(level: i32) -> Result<Compressor<'static>> {
    let levels = zstd::compression_level_range();
    if !levels.contains(&level) {
        let (low, high) = (levels.start(), levels.end());
        return Err(Error::invalid(format!("zstd has no level {level}: expected {low} to {high} (usual: 1 to 19)")));
    }
    Compressor::new(level).map_err(|e| Error::invalid(format!("zstd could not start at level {level}: {e}")))
}

/// Unpacks rows of every codec; reuses its buffer and zstd's tables.
#[derive(Default)]
pub(crate) struct Decoder {
    zstd: Option<Decompressor<'static>>,
    shuffled: Vec<u8>,
}

impl Decoder {
    /// A decoder; zstd is started when the first row needs it.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Checks that `encoded` claims to unpack to `raw_len_bytes`. Call it before allocating a buffer for them. O(1).
    ///
    /// # Errors
    /// A message with the length that it claims instead.
    pub(crate) fn check_len(encoded: &[u8], raw_len_bytes: usize) -> Result<(), String> {
        let found = match encoded.split_first() {
            Some((&RAW, data)) => Some(data.len() as u64),
            Some((_, data)) => zstd::zstd_safe::get_frame_content_size(data).map_err(|e| format!("{e:?}"))?,
            None => return Err("expected a packed row, found no bytes".to_owned()),
        };
        match found {
            Some(found) if found != raw_len_bytes as u64 => {
                Err(format!("expected a packed row of {raw_len_bytes} bytes, found one of {found}"))
            }
            _ => Ok(()),
        }
    }

    /// Unpacks `encoded` into `out`, which is `raw_len_bytes` long. `encoded` is not trusted.
    ///
    /// # Errors
    /// A message if `encoded` does not unpack to exactly `raw_len_bytes`. The contents of `out` are then unspecified.
    pub(crate) fn decode(
        &mut self,
        encoded: &[u8],
        element_len_bytes: usize,
        raw_len_bytes: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        if out.len() != raw_len_bytes {
            return Err(format!("expected a buffer of {raw_len_bytes} bytes for the row, found {}", out.len()));
        }
        let Some((kind, data)) = encoded.split_first() else {
            return Err("expected a packed row, found no bytes".to_owned());
        };
        match *kind {
            RAW if data.len() == out.len() => out.copy_from_slice(data),
            RAW => return Err(wrong_len(raw_len_bytes, data.len())),
            SHUFFLED_ZSTD if element_len_bytes > 1 => {
                self.shuffled.resize(raw_len_bytes, 0);
                unpack(&mut self.zstd, data, &mut self.shuffled)?;
                unshuffle(&self.shuffled, element_len_bytes, out);
            }
            ZSTD | SHUFFLED_ZSTD => unpack(&mut self.zstd, data, out)?,
            kind => return Err(format!("expected a packed row of kind 0, 1 or 2, found kind {kind}")),
        }
        Ok(())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// One-shot zstd decodes directly into `out` and allocates nothing by the sizes that the frame claims.
fn unpack(zstd: &mut Option<Decompressor<'static>>, data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let zstd = match zstd {
        Some(zstd) => zstd,
        None => zstd.insert(Decompressor::new().map_err(|e| format!("zstd could not start: {e}"))?),
    };
    let expected = out.len();
    match zstd.decompress_to_buffer(data, out) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(wrong_len(expected, found)),
        Err(e) => Err(format!("expected a zstd frame of {expected} bytes: {e}")),
    }
}

fn wrong_len(expected: usize, found: usize) -> String {
    format!("expected a row of {expected} bytes, found {found}")
}

/// Transposes the bytes of `raw`'s elements into `out`, which is as long. O(bytes).
fn shuffle(raw: &[u8], element_len_bytes: usize, out: &mut [u8]) {
    match element_len_bytes {
        2 => shuffle_words::<2>(raw, out, |word, byte| (u16::from_le_bytes(word) >> (8 * byte)) as u8),
        4 => shuffle_words::<4>(raw, out, |word, byte| (u32::from_le_bytes(word) >> (8 * byte)) as u8),
        8 => shuffle_words::<8>(raw, out, |word, byte| (u64::from_le_bytes(word) >> (8 * byte)) as u8),
        _ => shuffle_any(raw, element_len_bytes, out),
    }
}

/// Undoes [`shuffle`].
fn unshuffle(shuffled: &[u8], element_len_bytes: usize, out: &mut [u8]) {
    match element_len_bytes {
        2 => unshuffle_2(shuffled, out),
        4 => unshuffle_4(shuffled, out),
        8 => unshuffle_8(shuffled, out),
        _ => unshuffle_any(shuffled, element_len_bytes, out),
    }
}

/// One pass a plane: whole words are loaded and narrowed, which compilers turn into SIMD.
fn shuffle_words<const N: usize>(raw: &[u8], out: &mut [u8], byte_of: impl Fn([u8; N], usize) -> u8) {
    let (words, tail) = raw.as_chunks::<N>();
    if words.is_empty() {
        return out.copy_from_slice(raw);
    }
    let (planes, out_tail) = out.split_at_mut(words.len() * N);
    for (byte, plane) in planes.chunks_exact_mut(words.len()).enumerate() {
        for (out, word) in plane.iter_mut().zip(words) {
            *out = byte_of(*word, byte);
        }
    }
    out_tail.copy_from_slice(tail);
}

fn shuffle_any(raw: &[u8], element_len_bytes: usize, out: &mut [u8]) {
    let elements = raw.len() / element_len_bytes.max(1);
    if elements == 0 {
        return out.copy_from_slice(raw);
    }
    let (words, tail) = raw.split_at(elements * element_len_bytes);
    let (planes, out_tail) = out.split_at_mut(words.len());
    for (byte, plane) in planes.chunks_exact_mut(elements).enumerate() {
        for (out, byte) in plane.iter_mut().zip(words.iter().skip(byte).step_by(element_len_bytes)) {
            *out = *byte;
        }
    }
    out_tail.copy_from_slice(tail);
}

fn unshuffle_any(shuffled: &[u8], element_len_bytes: usize, out: &mut [u8]) {
    let elements = shuffled.len() / element_len_bytes.max(1);
    if elements == 0 {
        return out.copy_from_slice(shuffled);
    }
    let (planes, tail) = shuffled.split_at(elements * element_len_bytes);
    let (words, out_tail) = out.split_at_mut(planes.len());
    for (byte, plane) in planes.chunks_exact(elements).enumerate() {
        for (out, byte) in words.iter_mut().skip(byte).step_by(element_len_bytes).zip(plane) {
            *out = *byte;
        }
    }
    out_tail.copy_from_slice(tail);
}

fn unshuffle_2(shuffled: &[u8], out: &mut [u8]) {
    let (words, out_tail) = out.as_chunks_mut::<2>();
    let (low, rest) = shuffled.split_at(words.len());
    let (high, tail) = rest.split_at(words.len());
    for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
        *word = [*low, *high];
    }
    out_tail.copy_from_slice(tail);
}

fn unshuffle_4(shuffled: &[u8], out: &mut [u8]) {
    let (words, out_tail) = out.as_chunks_mut::<4>();
    let (a, rest) = shuffled.split_at(words.len());
    let (b, rest) = rest.split_at(words.len());
    let (c, rest) = rest.split_at(words.len());
    let (d, tail) = rest.split_at(words.len());
    for ((((word, a), b), c), d) in words.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *word = [*a, *b, *c, *d];
    }
    out_tail.copy_from_slice(tail);
}

fn unshuffle_8(shuffled: &[u8], out: &mut [u8]) {
    let (words, out_tail) = out.as_chunks_mut::<8>();
    let (planes, tail) = shuffled.split_at(words.len() * 8);
    let (low, high) = planes.split_at(words.len() * 4);
    let ((a, b), (c, d)) = quarters(low);
    let ((e, f), (g, h)) = quarters(high);
    let first = a.iter().zip(b).zip(c).zip(d);
    let second = e.iter().zip(f).zip(g).zip(h);
    for ((word, (((a, b), c), d)), (((e, f), g), h)) in words.iter_mut().zip(first).zip(second) {
        *word = [*a, *b, *c, *d, *e, *f, *g, *h];
    }
    out_tail.copy_from_slice(tail);
}

type Pair<'a> = (&'a [u8], &'a [u8]);

fn quarters(planes: &[u8]) -> (Pair<'_>, Pair<'_>) {
    let (first, second) = planes.split_at(planes.len() / 2);
    (first.split_at(first.len() / 2), second.split_at(second.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Codec; 3] = [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 1 }];

    fn packed(codec: Codec, raw: &[u8], element_len_bytes: usize) -> Vec<u8> {
        let mut out = vec![9];
        Encoder::new(codec).unwrap().encode(raw, element_len_bytes, &mut out).unwrap();
        assert_eq!(out.remove(0), 9, "appends");
        out
    }

    fn smooth(elements: usize) -> Vec<u8> {
        (0..elements).flat_map(|i| (1.0 + i as f32 * 1e-3).to_le_bytes()).collect()
    }

    #[test]
    fn names_round_trip() {
        for codec in ALL {
            assert_eq!(Codec::from_name(codec.name()).unwrap().name(), codec.name());
        }
        assert_eq!((Codec::from_name("lz4"), Codec::default()), (None, Codec::None));
    }

    #[test]
    fn shuffling_is_a_transposition() {
        let raw: Vec<u8> = (0..14).collect();
        let mut out = vec![0; 14];
        shuffle(&raw, 4, &mut out);
        assert_eq!(out, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, 12, 13]);
    }

    #[test]
    fn shuffling_helps_floats() {
        let raw = smooth(768);
        let (plain, shuffled) = (packed(ALL[1], &raw, 4), packed(ALL[2], &raw, 4));
        assert_eq!((plain[0], shuffled[0]), (ZSTD, SHUFFLED_ZSTD));
        assert!(shuffled.len() * 3 < plain.len() * 2, "{} {}", shuffled.len(), plain.len());
        assert_eq!(packed(ALL[2], &[0; 100], 1)[0], ZSTD, "bytes are not shuffled");
    }

    #[test]
    fn incompressible_rows_grow_by_one_byte() {
        let noise: Vec<u8> =
            (0..1000_u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ i as u8).collect();
        for codec in ALL {
            for raw in [&noise[..5], &[]] {
                assert_eq!(packed(codec, raw, 4), [&[RAW], raw].concat());
            }
        }
    }

    #[test]
    fn levels_are_checked() {
        assert!(matches!(Encoder::new(Codec::Zstd { level: 1000 }), Err(Error::Invalid { .. })));
        assert!(Encoder::new(Codec::ShuffleZstd { level: 0 }).is_ok());
    }

    #[test]
    fn another_length_is_refused() {
        let raw = smooth(64);
        let mut decoder = Decoder::new();
        for codec in ALL {
            let encoded = packed(codec, &raw, 4);
            for wrong in [0, 1, 255, 257, 100_000] {
                assert!(decoder.decode(&encoded, 4, wrong, &mut vec![0; wrong]).is_err());
            }
            assert!(decoder.decode(&encoded, 4, 256, &mut [0; 255]).is_err());
            assert!(decoder.decode(&encoded[..encoded.len() - 1], 4, 256, &mut [0; 256]).is_err());
            assert!(decoder.decode(&[], 4, 256, &mut [0; 256]).is_err());
            decoder.decode(&encoded, 4, 256, &mut [0; 256]).unwrap();
        }
    }

    proptest! {
        #[test]
        fn rows_round_trip(
            rows in prop::collection::vec((prop::collection::vec(0_u8..4, 0..700), 0_usize..20), 1..5),
            codec in prop::sample::select(ALL.to_vec()),
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(codec).unwrap(), Decoder::new());
            for (raw, element_len_bytes) in rows {
                let mut encoded = Vec::new();
                encoder.encode(&raw, element_len_bytes, &mut encoded).unwrap();
                prop_assert!(encoded.len() <= raw.len() + 1);
                let mut out = vec![7; raw.len()];
                decoder.decode(&encoded, element_len_bytes, raw.len(), &mut out).unwrap();
                prop_assert_eq!(out, raw);
            }
        }

        #[test]
        fn shuffling_round_trips(raw in prop::collection::vec(any::<u8>(), 0..300), element_len_bytes in 0_usize..20) {
            let (mut shuffled, mut slow, mut out) = (vec![0; raw.len()], vec![0; raw.len()], vec![0; raw.len()]);
            shuffle(&raw, element_len_bytes, &mut shuffled);
            shuffle_any(&raw, element_len_bytes, &mut slow);
            prop_assert_eq!(&shuffled, &slow);
            unshuffle(&shuffled, element_len_bytes, &mut out);
            prop_assert_eq!(out, raw);
        }

        #[test]
        fn garbage_never_panics(
            kind in 0_u8..4,
            data in prop::collection::vec(any::<u8>(), 0..200),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            element_len_bytes in 0_usize..10,
            raw_len_bytes in 0_usize..600,
        ) {
            let mut decoder = Decoder::new();
            let mut out = vec![0; raw_len_bytes];
            let _ = decoder.decode(&[&[kind][..], &data].concat(), element_len_bytes, raw_len_bytes, &mut out);
            let mut encoded = packed(ALL[2], &smooth(64), 4);
            for (at, xor) in flips {
                let at = at.index(encoded.len());
                encoded[at] ^= xor;
            }
            let _ = decoder.decode(&encoded, element_len_bytes, raw_len_bytes, &mut out);
            let _ = decoder.decode(&encoded, 4, 256, &mut [0; 256]);
        }
    }
}
