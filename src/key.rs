//! Keys: strings, 64-bit integers or byte strings; one kind a store.
//!
//! A key's *canonical bytes* are its UTF-8, its eight little-endian bytes, or itself. They are what is hashed
//! ([xxh3-64](https://github.com/Cyan4973/xxHash)), compared and checksummed. The hash only proposes a row; the
//! canonical bytes are compared before a value is returned.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

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

macro_rules! key_from {
    ($($type:ty => |$value:ident| $key:expr),* $(,)?) => {
        $(impl<'a> From<$type> for KeyRef<'a> { fn from($value: $type) -> Self { $key } })*
    };
}
key_from! {
    &'a str => |text| KeyRef::Str(text),
    &'a String => |text| KeyRef::Str(text),
    u64 => |number| KeyRef::U64(number),
    &'a [u8] => |bytes| KeyRef::Bytes(bytes),
    &'a Vec<u8> => |bytes| KeyRef::Bytes(bytes),
    &'a Key => |key| key.as_ref(),
}

/// The keys of one call: any slice of strings, integers, byte strings, [`Key`]s or [`KeyRef`]s. Nothing is copied.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Keys<'a> {
    /// Integers.
    U64(&'a [u64]),
    /// Borrowed strings.
    Strs(&'a [&'a str]),
    /// Owned strings.
    Strings(&'a [String]),
    /// Borrowed byte strings.
    Slices(&'a [&'a [u8]]),
    /// Owned byte strings.
    Vecs(&'a [Vec<u8>]),
    /// Owned keys.
    Keys(&'a [Key]),
    /// Borrowed keys.
    Refs(&'a [KeyRef<'a>]),
}

impl<'a> Keys<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U64(keys) => keys.len(),
            Self::Strs(keys) => keys.len(),
            Self::Strings(keys) => keys.len(),
            Self::Slices(keys) => keys.len(),
            Self::Vecs(keys) => keys.len(),
            Self::Keys(keys) => keys.len(),
            Self::Refs(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key at `position`, or `None` past the end.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<KeyRef<'a>> {
        Some(match *self {
            Self::U64(keys) => KeyRef::U64(*keys.get(position)?),
            Self::Strs(keys) => KeyRef::Str(keys.get(position)?),
            Self::Strings(keys) => KeyRef::Str(keys.get(position)?),
            Self::Slices(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Vecs(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Keys(keys) => keys.get(position)?.as_ref(),
            Self::Refs(keys) => *keys.get(position)?,
        })
    }

    /// The integers, if all are.
    pub(crate) fn integers(self) -> Option<&'a [u64]> {
        match self {
            Self::U64(keys) => Some(keys),
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
    /// [`Error::KeyKind`] if kinds are mixed, [`Error::TooLarge`] if a key is longer than [`MAX_KEY_LEN_BYTES`].
    pub(crate) fn check(self) -> Result<Option<KeyKind>> {
        let kind = match self {
            Self::U64(_) => KeyKind::U64,
            Self::Strs(_) | Self::Strings(_) => KeyKind::Str,
            Self::Slices(_) | Self::Vecs(_) => KeyKind::Bytes,
            Self::Keys(_) | Self::Refs(_) => match self.get(0) {
                Some(first) => first.kind(),
                None => return Ok(None),
            },
        };
        if matches!(self, Self::U64(_)) {
            return Ok((!self.is_empty()).then_some(kind));
        }
        for key in self.iter() {
            kind.expect(key.kind())?;
            let len_bytes = key.with_bytes(<[u8]>::len);
            if len_bytes > MAX_KEY_LEN_BYTES {
                return Err(Error::TooLarge {
                    what: "the length of a key in bytes".into(),
                    found: len_bytes as u64,
                    limit: MAX_KEY_LEN_BYTES as u64,
                });
            }
        }
        Ok((!self.is_empty()).then_some(kind))
    }
}

macro_rules! keys_from {
    ($($element:ty => $variant:ident),* $(,)?) => {
        $(
            impl<'a> From<&'a [$element]> for Keys<'a> { fn from(keys: &'a [$element]) -> Self { Self::$variant(keys) } }
            impl<'a> From<&'a Vec<$element>> for Keys<'a> { fn from(keys: &'a Vec<$element>) -> Self { Self::$variant(keys) } }
            impl<'a, const N: usize> From<&'a [$element; N]> for Keys<'a> {
                fn from(keys: &'a [$element; N]) -> Self { Self::$variant(keys) }
            }
        )*
    };
}
keys_from! {
    u64 => U64, &'a str => Strs, String => Strings, &'a [u8] => Slices, Vec<u8> => Vecs, Key => Keys,
    KeyRef<'a> => Refs,
}

/// The key hash of a store: xxh3-64, of which a test may keep the top bits only, to make collisions common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeyHasher {
    /// 0 for the whole hash, else how many top bits are kept. Recorded in every seal and run.
    id: u8,
}

impl KeyHasher {
    /// The hasher with this code, if there is one.
    pub(crate) const fn from_id(id: u8) -> Option<Self> {
        if id < 64 { Some(Self { id }) } else { None }
    }

    /// Whether all bits of the hash are kept, so that rows with one hash are of one key.
    pub(crate) const fn is_whole(self) -> bool {
        self.id == 0 || self.id >= 64
    }

    /// The hash of canonical bytes.
    #[inline]
    pub(crate) fn hash(self, bytes: &[u8]) -> u64 {
        let hash = xxh3_64(bytes);
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
        assert!(matches!(Keys::from(&long).check(), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn weak_hashes_keep_top_bits() {
        let weak = KeyHasher::from_id(8).unwrap();
        let full = KeyHasher::default().hash(b"a");
        assert_eq!(weak.hash(b"a"), full & 0xFF00_0000_0000_0000);
    }
}
