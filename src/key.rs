//! Keys: strings, 64-bit integers or byte strings; one kind a store.
//!
//! A key's *canonical bytes* are its UTF-8, its eight little-endian bytes, or itself. They are what is hashed
//! ([xxh3-64](https://github.com/Cyan4973/xxHash)), compared and checksummed. The hash only proposes a row; the
//! canonical bytes are compared before a value is returned.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Error, Result};

/// Longest key in bytes (64 KiB).
pub const MAX_KEY_LEN_BYTES: usize = 1 << 16;

/// The kind of a store's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Strings (Arrow `Utf8`).
    Str,
    /// Unsigned 64-bit integers (Arrow `UInt64`).
    U64,
    /// Byte strings (Arrow `Binary`).
    Bytes,
}

impl KeyKind {
    /// The name: `"str"`, `"u64"` or `"bytes"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::U64 => "u64",
            Self::Bytes => "bytes",
        }
    }

    /// The code in seals.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Str => 1,
            Self::U64 => 2,
            Self::Bytes => 3,
        }
    }

    /// The key that has these canonical bytes, or `None` if they are none of this kind.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<Key> {
        match self {
            Self::Str => std::str::from_utf8(bytes).ok().map(|text| Key::Str(text.to_owned())),
            Self::U64 => bytes.try_into().ok().map(|bytes| Key::U64(u64::from_le_bytes(bytes))),
            Self::Bytes => Some(Key::Bytes(bytes.to_vec())),
        }
    }

    /// [`Error::KeyKind`] unless `found` is this kind.
    pub(crate) fn expect(self, found: Self) -> Result<()> {
        if self == found { Ok(()) } else { Err(Error::KeyKind { expected: self.name(), found: found.name() }) }
    }
}

/// An owned key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A string.
    Str(String),
    /// An integer.
    U64(u64),
    /// A byte string.
    Bytes(Vec<u8>),
}

impl Key {
    /// A borrowed view.
    #[must_use]
    pub fn as_ref(&self) -> KeyRef<'_> {
        match self {
            Self::Str(text) => KeyRef::Str(text),
            Self::U64(number) => KeyRef::U64(*number),
            Self::Bytes(bytes) => KeyRef::Bytes(bytes),
        }
    }

    /// The integer, if the key is one.
    #[must_use]
    pub const fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U64(number) => Some(*number),
            _ => None,
        }
    }

    /// The string, if the key is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if the key is a byte string.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

macro_rules! key_conversions {
    ($($type:ty => $variant:ident),* $(,)?) => {
        $(
            impl From<$type> for Key { fn from(key: $type) -> Self { Self::$variant(key) } }
            /// The key itself comes back as the error if it is of another kind.
            impl TryFrom<Key> for $type {
                type Error = Key;

                fn try_from(key: Key) -> std::result::Result<Self, Key> {
                    match key {
                        Key::$variant(key) => Ok(key),
                        other => Err(other),
                    }
                }
            }
        )*
    };
}
key_conversions!(String => Str, u64 => U64, Vec<u8> => Bytes);

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self::Str(key.to_owned())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) => f.write_str(text),
            Self::U64(number) => write!(f, "{number}"),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Strings as text, integers as numbers, bytes in hexadecimal.
impl serde::Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::U64(number) => serializer.serialize_u64(*number),
            Self::Str(_) | Self::Bytes(_) => serializer.collect_str(self),
        }
    }
}

/// A borrowed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyRef<'a> {
    /// A string.
    Str(&'a str),
    /// An integer.
    U64(u64),
    /// A byte string.
    Bytes(&'a [u8]),
}

impl KeyRef<'_> {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        match self {
            Self::Str(_) => KeyKind::Str,
            Self::U64(_) => KeyKind::U64,
            Self::Bytes(_) => KeyKind::Bytes,
        }
    }

    /// A key of its own.
    #[must_use]
    pub fn to_key(&self) -> Key {
        match *self {
            Self::Str(text) => Key::Str(text.to_owned()),
            Self::U64(number) => Key::U64(number),
            Self::Bytes(bytes) => Key::Bytes(bytes.to_vec()),
        }
    }

    /// The beginning of the key, for messages.
    fn abbreviated(&self) -> String {
        const SHOWN: usize = 40;
        match self {
            Self::Str(text) => format!("{:?}…", text.chars().take(SHOWN).collect::<String>()),
            _ => format!("{}…", self.to_key().to_string().chars().take(SHOWN).collect::<String>()),
        }
    }

    /// Calls `f` with the canonical bytes.
    #[inline]
    pub(crate) fn with_bytes<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Str(text) => f(text.as_bytes()),
            Self::U64(number) => f(&number.to_le_bytes()),
            Self::Bytes(bytes) => f(bytes),
        }
    }
}

/// What calls take as one key: strings, integers and byte strings, owned or borrowed.
///
/// Integers are keys of kind [`KeyKind::U64`], whatever their type. A negative one is refused.
pub trait AsKey {
    /// The key. O(1), nothing is copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative integer.
    fn as_key(&self) -> Result<KeyRef<'_>>;
}

impl<T: AsKey + ?Sized> AsKey for &T {
    fn as_key(&self) -> Result<KeyRef<'_>> {
        (**self).as_key()
    }
}

macro_rules! as_key {
    ($(|$key:ident: $type:ty| $as:expr),* $(,)?) => {
        $(impl AsKey for $type { fn as_key(&self) -> Result<KeyRef<'_>> { let $key = self; $as } })*
    };
}
as_key! {
    |key: str| Ok(KeyRef::Str(key)),
    |key: String| Ok(KeyRef::Str(key)),
    |key: Box<str>| Ok(KeyRef::Str(key)),
    |key: Arc<str>| Ok(KeyRef::Str(key)),
    |key: Rc<str>| Ok(KeyRef::Str(key)),
    |key: Cow<'_, str>| Ok(KeyRef::Str(key)),
    |key: [u8]| Ok(KeyRef::Bytes(key)),
    |key: Vec<u8>| Ok(KeyRef::Bytes(key)),
    |key: Key| Ok(key.as_ref()),
    |key: KeyRef<'_>| Ok(*key),
    |key: u64| Ok(KeyRef::U64(*key)),
    |key: u32| Ok(KeyRef::U64((*key).into())),
    |key: usize| Ok(KeyRef::U64(*key as u64)),
    |key: i64| natural(*key),
    |key: i32| natural((*key).into()),
}

impl<const N: usize> AsKey for [u8; N] {
    fn as_key(&self) -> Result<KeyRef<'_>> {
        Ok(KeyRef::Bytes(self))
    }
}

fn natural(key: i64) -> Result<KeyRef<'static>> {
    match u64::try_from(key) {
        Ok(key) => Ok(KeyRef::U64(key)),
        Err(_) => Err(Error::invalid(format!("the key {key} is negative: {NEGATIVE}"))),
    }
}

const NEGATIVE: &str = "integer keys are unsigned; add an offset to all of them, or use them as strings";

/// The keys of one call: any slice of strings, integers, byte strings, [`Key`]s or [`KeyRef`]s. Nothing is copied.
///
/// Integers are keys of kind [`KeyKind::U64`], whatever their type. A call with a negative one is refused.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Keys<'a> {
    /// Integers.
    U64(&'a [u64]),
    /// Signed integers, as ids of datasets often are.
    I64(&'a [i64]),
    /// Signed integers of 32 bits: what integer literals are.
    I32(&'a [i32]),
    /// Borrowed strings.
    Strs(&'a [&'a str]),
    /// Owned strings.
    Strings(&'a [String]),
    /// Shared strings.
    Arcs(&'a [Arc<str>]),
    /// Borrowed byte strings.
    Slices(&'a [&'a [u8]]),
    /// Owned byte strings.
    Vecs(&'a [Vec<u8>]),
    /// Byte strings of one length, such as digests, one after the other.
    Arrays {
        /// How many.
        len: usize,
        /// All of them.
        bytes: &'a [u8],
    },
    /// Owned keys.
    Keys(&'a [Key]),
    /// Borrowed keys.
    KeyPtrs(&'a [&'a Key]),
    /// Borrowed keys of any kind.
    Refs(&'a [KeyRef<'a>]),
}

impl<'a> Keys<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U64(keys) => keys.len(),
            Self::I64(keys) => keys.len(),
            Self::I32(keys) => keys.len(),
            Self::Strs(keys) => keys.len(),
            Self::Strings(keys) => keys.len(),
            Self::Arcs(keys) => keys.len(),
            Self::Slices(keys) => keys.len(),
            Self::Vecs(keys) => keys.len(),
            Self::Arrays { len, .. } => *len,
            Self::Keys(keys) => keys.len(),
            Self::KeyPtrs(keys) => keys.len(),
            Self::Refs(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key at `position`, or `None` past the end. A negative integer gives its bits; every call refuses it.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<KeyRef<'a>> {
        Some(match *self {
            Self::U64(keys) => KeyRef::U64(*keys.get(position)?),
            Self::I64(keys) => KeyRef::U64(keys.get(position)?.cast_unsigned()),
            Self::I32(keys) => KeyRef::U64(i64::from(*keys.get(position)?).cast_unsigned()),
            Self::Strs(keys) => KeyRef::Str(keys.get(position)?),
            Self::Strings(keys) => KeyRef::Str(keys.get(position)?),
            Self::Arcs(keys) => KeyRef::Str(keys.get(position)?),
            Self::Slices(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Vecs(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Arrays { len, bytes } => {
                let len_bytes = bytes.len().checked_div(len)?;
                KeyRef::Bytes(if position < len {
                    bytes.get(position * len_bytes..(position + 1) * len_bytes)?
                } else {
                    return None;
                })
            }
            Self::Keys(keys) => keys.get(position)?.as_ref(),
            Self::KeyPtrs(keys) => keys.get(position)?.as_ref(),
            Self::Refs(keys) => *keys.get(position)?,
        })
    }

    /// The integers, if all are, of keys that were checked.
    pub(crate) fn integers(self) -> Option<&'a [u64]> {
        match self {
            Self::U64(keys) => Some(keys),
            // None is negative.
            Self::I64(keys) => Some(bytemuck::cast_slice(keys)),
            _ => None,
        }
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = KeyRef<'a>> {
        // `get` is `Some` below `len`; the fallback only satisfies the type.
        (0..self.len()).map(move |position| self.get(position).unwrap_or(KeyRef::U64(0)))
    }

    /// The one kind of all keys; `None` for an empty call.
    ///
    /// # Errors
    /// [`Error::KeyKind`] if kinds are mixed, [`Error::TooLarge`] if a key is longer than [`MAX_KEY_LEN_BYTES`],
    /// [`Error::Invalid`] if an integer is negative.
    pub(crate) fn check(self) -> Result<Option<KeyKind>> {
        let Some(first) = self.get(0) else { return Ok(None) };
        let kind = first.kind();
        let negative = match self {
            Self::U64(_) => return Ok(Some(kind)),
            Self::I64(keys) => keys.iter().position(|&key| key < 0),
            Self::I32(keys) => keys.iter().position(|&key| key < 0),
            _ => None,
        };
        if let Some((position, KeyRef::U64(bits))) = negative.and_then(|at| Some((at, self.get(at)?))) {
            let key = bits.cast_signed();
            return Err(Error::invalid(format!("the key {key} at position {position} is negative: {NEGATIVE}")));
        }
        for (position, key) in self.iter().enumerate() {
            kind.expect(key.kind())?;
            let len_bytes = key.with_bytes(<[u8]>::len);
            if len_bytes > MAX_KEY_LEN_BYTES {
                return Err(Error::TooLarge {
                    what: format!(
                        "the length in bytes of the key at position {position} ({}; use a hash of it as the key)",
                        key.abbreviated()
                    ),
                    found: len_bytes as u64,
                    limit: MAX_KEY_LEN_BYTES as u64,
                });
            }
        }
        Ok(Some(kind))
    }
}

macro_rules! keys_from {
    ($($element:ty => |$keys:ident| $as:expr),* $(,)?) => {
        $(
            impl<'a> From<&'a [$element]> for Keys<'a> { fn from($keys: &'a [$element]) -> Self { $as } }
            impl<'a> From<&'a Vec<$element>> for Keys<'a> {
                fn from(keys: &'a Vec<$element>) -> Self { keys.as_slice().into() }
            }
            impl<'a, const N: usize> From<&'a [$element; N]> for Keys<'a> {
                fn from(keys: &'a [$element; N]) -> Self { keys.as_slice().into() }
            }
        )*
    };
}
keys_from! {
    u64 => |keys| Self::U64(keys),
    i64 => |keys| Self::I64(keys),
    i32 => |keys| Self::I32(keys),
    &'a str => |keys| Self::Strs(keys),
    String => |keys| Self::Strings(keys),
    Arc<str> => |keys| Self::Arcs(keys),
    &'a [u8] => |keys| Self::Slices(keys),
    Vec<u8> => |keys| Self::Vecs(keys),
    Key => |keys| Self::Keys(keys),
    &'a Key => |keys| Self::KeyPtrs(keys),
    KeyRef<'a> => |keys| Self::Refs(keys),
}
#[cfg(target_pointer_width = "64")]
keys_from! {
    usize => |keys| Self::U64(bytemuck::cast_slice(keys)),
}

impl<'a, const N: usize> From<&'a [[u8; N]]> for Keys<'a> {
    fn from(keys: &'a [[u8; N]]) -> Self {
        Self::Arrays { len: keys.len(), bytes: keys.as_flattened() }
    }
}

impl<'a, const N: usize> From<&'a Vec<[u8; N]>> for Keys<'a> {
    fn from(keys: &'a Vec<[u8; N]>) -> Self {
        keys.as_slice().into()
    }
}

impl<'a, const N: usize, const M: usize> From<&'a [[u8; N]; M]> for Keys<'a> {
    fn from(keys: &'a [[u8; N]; M]) -> Self {
        keys.as_slice().into()
    }
}

/// What the key hashes of a store start from: random, so that nobody can choose keys that all fall into one place of its
/// index. In JSON 16 hexadecimal digits, since many programs read numbers as floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct HashSeed(pub u64);

impl From<HashSeed> for String {
    fn from(seed: HashSeed) -> Self {
        format!("{:016x}", seed.0)
    }
}

impl TryFrom<String> for HashSeed {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let seed = u64::from_str_radix(&text, 16).ok().map(Self);
        // Only the one spelling counts.
        seed.filter(|seed| String::from(*seed) == text).ok_or_else(|| format!("{text:?} is no hash seed"))
    }
}

/// The key hash of a store: xxh3-64 with a seed, of which a test may keep the top bits only, to make collisions common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeyHasher {
    seed: u64,
    /// 0 for the whole hash, else how many top bits are kept. Recorded in every seal and run.
    id: u8,
}

impl KeyHasher {
    /// The hasher with this code and seed, if there is one.
    pub(crate) const fn new(id: u8, seed: u64) -> Option<Self> {
        if id < 64 { Some(Self { seed, id }) } else { None }
    }

    /// Whether all bits of the hash are kept, so that rows with one hash are of one key.
    pub(crate) const fn is_whole(self) -> bool {
        self.id == 0 || self.id >= 64
    }

    /// The hash of canonical bytes.
    #[inline]
    pub(crate) fn hash(self, bytes: &[u8]) -> u64 {
        let hash = xxh3_64_with_seed(bytes, self.seed);
        if self.id == 0 { hash } else { hash & !(u64::MAX >> self.id) }
    }

    /// The hash of a key.
    #[inline]
    pub(crate) fn hash_key(self, key: KeyRef<'_>) -> u64 {
        key.with_bytes(|bytes| self.hash(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_may_not_mix() {
        let mixed = [Key::U64(1), Key::Str("1".into())];
        assert!(matches!(Keys::from(&mixed).check(), Err(Error::KeyKind { .. })));
        assert_eq!(Keys::from(&["a", "b"]).check().unwrap(), Some(KeyKind::Str));
        assert_eq!(Keys::from(&Vec::<Key>::new()).check().unwrap(), None);
    }

    #[test]
    fn long_keys_are_refused() {
        let long = [vec![0_u8; MAX_KEY_LEN_BYTES + 1]];
        let refused = Keys::from(&[vec![1], long[0].clone()]).check().unwrap_err();
        assert!(matches!(refused, Error::TooLarge { .. }));
        let said = refused.to_string();
        assert!(said.contains("the key at position 1 (0000") && said.contains("hash"), "{said}");
    }

    #[test]
    fn every_slice_of_keys() {
        fn of<'a>(keys: impl Into<Keys<'a>>) -> Vec<KeyRef<'a>> {
            let keys = keys.into();
            assert_eq!(keys.get(keys.len()), None);
            keys.check().unwrap();
            keys.iter().collect()
        }
        let numbers = [KeyRef::U64(7), KeyRef::U64(8)];
        assert_eq!(of(&[7_u64, 8]), numbers);
        assert_eq!(of(&[7, 8]), numbers);
        assert_eq!(of(&vec![7_i64, 8]), numbers);
        assert_eq!(of(&[7_usize, 8]), numbers);
        assert_eq!(Keys::from(&[7_i64, 8]).integers().unwrap(), [7, 8]);
        let texts = [KeyRef::Str("a"), KeyRef::Str("b")];
        assert_eq!(of(&[Arc::<str>::from("a"), Arc::from("b")]), texts);
        let (a, b) = (Key::from("a"), Key::from("b"));
        assert_eq!(of(&[&a, &b]), texts);
        let digests = [[1_u8, 2, 3], [4, 5, 6]];
        assert_eq!(of(&digests), [KeyRef::Bytes(&[1, 2, 3]), KeyRef::Bytes(&[4, 5, 6])]);
        assert_eq!(of(&digests.to_vec()), of(&digests));
        assert_eq!(of(&[[0_u8; 0]; 2]), [KeyRef::Bytes(&[]), KeyRef::Bytes(&[])]);
    }

    #[test]
    fn one_key_of_any_type() {
        fn of(key: impl AsKey) -> Key {
            key.as_key().unwrap().to_key()
        }
        for number in [of(7), of(7_u64), of(7_i64), of(7_usize), of(7_u32), of(Key::U64(7)), of(KeyRef::U64(7))] {
            assert_eq!(number.as_u64(), Some(7));
        }
        for text in [of("a"), of(String::from("a")), of("a"), of(Arc::<str>::from("a")), of(Cow::from("a"))] {
            assert_eq!(text.as_str(), Some("a"));
        }
        for bytes in [of([1_u8, 2]), of(vec![1_u8, 2]), of(&[1_u8, 2][..])] {
            assert_eq!(Vec::try_from(bytes), Ok(vec![1, 2]));
        }
        assert_eq!(u64::try_from(Key::from("a")), Err(Key::from("a")));
    }

    #[test]
    fn negative_integers_are_refused() {
        let said = Keys::from(&[1_i64, -3]).check().unwrap_err().to_string();
        assert!(said.contains("the key -3 at position 1 is negative"), "{said}");
        assert!(Keys::from(&[-1]).check().is_err());
        assert!((-1_i64).as_key().is_err() && (-1).as_key().is_err());
    }

    #[test]
    fn weak_hashes_keep_top_bits() {
        let weak = KeyHasher::new(8, 0).unwrap();
        let full = KeyHasher::default().hash(b"a");
        assert_eq!(weak.hash(b"a"), full & 0xFF00_0000_0000_0000);
        assert_ne!(KeyHasher::new(0, 1).unwrap().hash(b"a"), full);
    }

    #[test]
    fn seeds_are_sixteen_digits() {
        let seed = HashSeed(0x00ab_0000_0000_0001);
        assert_eq!(serde_json::to_string(&seed).unwrap(), "\"00ab000000000001\"");
        assert_eq!(serde_json::from_str::<HashSeed>("\"00ab000000000001\"").unwrap(), seed);
        for bad in ["\"ab\"", "\"00AB000000000001\"", "\"+0ab000000000001\"", "1", "\"\""] {
            assert!(serde_json::from_str::<HashSeed>(bad).is_err(), "{bad}");
        }
    }
}
