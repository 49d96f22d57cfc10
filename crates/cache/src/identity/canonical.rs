//! The byte strings that identities and keys are hashes of.

use xxhash_rust::xxh3::xxh3_128;

/// A byte string to be hashed. Each part is preceded by its length.
#[derive(Debug, Clone, Default)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// Starts with the domain, so that hashes for different purposes differ.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self::default().part(domain.as_bytes())
    }

    /// Appends a part.
    #[must_use]
    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// The 128-bit XXH3 hash.
    #[must_use]
    pub fn hash(&self) -> u128 {
        xxh3_128(&self.0)
    }
}
