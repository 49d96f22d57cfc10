//! What an identity of a wrapped module is made of, and how two of them differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything that decides whether an output of yesterday is still an output of this module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The version of the way in which outputs become values.
    pub encoding: u32,
    /// The caller's.
    pub version: String,
    /// What the module is beside its weights; empty if that is not looked at.
    #[serde(default)]
    pub structure: String,
    /// The caller's constructor arguments.
    pub arguments: BTreeMap<String, String>,
    /// Instances that are not to share.
    pub instance: String,
    /// The dtype that wider floats are kept as, or nothing.
    pub cache_dtype: String,
    /// Whether `weights` counts.
    pub weights_count: bool,
    /// A digest a variable.
    pub weights: BTreeMap<String, String>,
}

impl Identity {
    /// How `other` differs, one line a part.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
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
