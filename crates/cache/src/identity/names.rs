//! The names in the folder of a wrapped module.

use std::path::{Path, PathBuf};

use tensorcask::KeyKind;

/// The kinds of keys that an identity may have a store of, each in a folder of its name.
pub const KINDS: [KeyKind; 3] = [KeyKind::Str, KeyKind::U64, KeyKind::Bytes];

/// In the folder of an identity of a wrapped module: what the identity is made of.
pub const RECORD: &str = "identity.json";
/// There: the mean seconds that a sample took.
pub const TIMING: &str = "timing.json";
/// There: the cap at which it was full, and what the files took then.
pub const FULL: &str = "full.json";
const JSON_SUFFIX: &str = ".json";
const PART_SUFFIX: &str = ".part";
const PRUNED_SUFFIX: &str = ".pruned";

/// Whether a name in a module's folder is that of an identity.
pub fn is_identity(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of an identity's folder while it is removed.
pub fn pruned(id: &str) -> String {
    format!("{id}{PRUNED_SUFFIX}")
}

/// The identity that was being removed in a folder of this name.
pub fn parse_pruned(name: &str) -> Option<&str> {
    name.strip_suffix(PRUNED_SUFFIX).filter(|id| is_identity(id))
}

/// Path of a file of an identity that is being written, before it takes the place of `path`.
pub fn part(path: &Path, unique: uuid::Uuid) -> PathBuf {
    path.with_extension(format!("{}{PART_SUFFIX}", unique.simple()))
}

/// Whether a file of this name in the folder of an identity is one that the caching layer makes.
pub fn is_file_of_identity(name: &str) -> bool {
    let files = [RECORD, TIMING, FULL];
    let part = name.strip_suffix(PART_SUFFIX).and_then(|stem| stem.split_once('.'));
    let of = |stem: &str| files.iter().any(|file| file.strip_suffix(JSON_SUFFIX) == Some(stem));
    // The digits are those of a UUID.
    files.contains(&name) || part.is_some_and(|(stem, digits)| of(stem) && is_identity(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_ours_are_told_from_others() {
        let id = "0123456789abcdef0123456789abcdef";
        assert!(is_identity(id) && !is_identity(&id.to_uppercase()) && !is_identity("0123"));
        assert_eq!((parse_pruned(&pruned(id)), parse_pruned("notes.pruned")), (Some(id), None));
        let part = part(Path::new(TIMING), uuid::Uuid::from_u128(7));
        for name in [RECORD, TIMING, FULL, part.to_str().unwrap()] {
            assert!(is_file_of_identity(name), "{name}");
        }
        for name in ["notes.part", "timing.json.part", "identity.7.part", "identity.json~", "", ".part"] {
            assert!(!is_file_of_identity(name), "{name}");
        }
    }
}
