//! The bytes that identities and keys are hashes of.

use xxhash_rust::xxh3::xxh3_128;

/// Bytes to be hashed, each part with its length before it.
#[derive(Debug, Clone, Default)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// Nothing yet but the domain: what is hashed for one purpose is never taken for another.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self::default().part(domain.as_bytes())
    }

    /// One more part.
    #[must_use]
    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Their hash: XXH3, 128 bits.
    #[must_use]
    pub fn hash(&self) -> u128 {
        xxh3_128(&self.0)
    }
}
