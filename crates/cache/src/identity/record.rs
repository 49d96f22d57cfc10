//! The parts of an identity, and how two identities differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::canonical::Canonical;

/// The version of the encoding of outputs as values and of arguments as keys. In version 1 the places of arguments did
/// not count for calls with ids.
pub const ENCODING: u32 = 2;

/// Everything except the sample that an output depends on. Modules with equal identities share outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of the encoding of outputs and arguments.
    pub encoding: u32,
    /// The version that the caller names.
    pub version: String,
    /// The configuration of the module without its weights; empty if it is ignored.
    #[serde(default)]
    pub structure: String,
    /// The constructor arguments that the caller names.
    pub arguments: BTreeMap<String, String>,
    /// The name of the instance, which keeps equal modules apart.
    pub instance: String,
    /// The dtype that wider floats are kept as; empty if they are kept as they are.
    pub cache_dtype: String,
    /// Whether `weights` is part of the name.
    pub weights_count: bool,
    /// A digest per variable.
    pub weights: BTreeMap<String, String>,
}

impl Identity {
    /// The name of its folder: 128 bits in hexadecimal.
    #[must_use]
    pub fn name(&self) -> String {
        let pairs = |mut parts: Canonical, map: &BTreeMap<String, String>| {
            parts = parts.part(&(map.len() as u64).to_le_bytes());
            map.iter().fold(parts, |parts, (name, value)| parts.part(name.as_bytes()).part(value.as_bytes()))
        };
        let mut parts = Canonical::new("identity").part(&self.encoding.to_le_bytes());
        parts = parts.part(self.version.as_bytes()).part(self.instance.as_bytes());
        parts = parts.part(self.cache_dtype.as_bytes());
        parts = pairs(parts, &self.arguments);
        if !self.structure.is_empty() {
            parts = parts.part(b"structure").part(self.structure.as_bytes());
        }
        if self.weights_count {
            parts = pairs(parts.part(b"weights"), &self.weights);
        }
        format!("{:032x}", parts.hash())
    }

    /// The differences to `other`, one line per part.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut plain = |what: &str, ours: &str, theirs: &str| {
            if ours != theirs {
                lines.push(format!("{what}: {ours:?} here, {theirs:?} there"));
            }
        };
        plain("encoding", &self.encoding.to_string(), &other.encoding.to_string());
        plain("version", &self.version, &other.version);
        plain("instance", &self.instance, &other.instance);
        plain("structure", &self.structure, &other.structure);
        plain("cache_dtype", &self.cache_dtype, &other.cache_dtype);
        let maps = [("argument", &self.arguments, &other.arguments), ("weights", &self.weights, &other.weights)];
        for (what, ours, theirs) in maps {
            let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for name in names {
                match (ours.get(name), theirs.get(name)) {
                    (Some(a), Some(b)) if a != b => lines.push(format!("{what} {name}: {a} here, {b} there")),
                    (Some(a), None) => lines.push(format!("{what} {name}: {a} here, none there")),
                    (None, Some(b)) => lines.push(format!("{what} {name}: none here, {b} there")),
                    _ => {}
                }
            }
        }
        if self.weights_count != other.weights_count {
            lines.push(format!("weights count: {} here, {} there", self.weights_count, other.weights_count));
        }
        lines
    }
}
