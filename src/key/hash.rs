//! The hash of a key, and its seed.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::one::KeyRef;

/// The seed of a store's key hashes. It is random, so that nobody can choose keys that all fall into one place of the
/// index. In JSON it has 16 hexadecimal digits, since many programs read numbers as floats.
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
        // Only one spelling is valid.
        seed.filter(|seed| String::from(*seed) == text).ok_or_else(|| format!("{text:?} is no hash seed"))
    }
}

/// The key hash of a store: xxh3-64 with a seed. Tests may keep only the top bits, to make collisions common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeyHasher {
    seed: u64,
    /// 0 for the whole hash, else how many top bits are kept. Recorded in every seal and run.
    id: u8,
}

impl KeyHasher {
    /// The hasher with this code and seed; `None` if the code is unknown.
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
