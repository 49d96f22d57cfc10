//! The names in the folder of a wrapped module.

use std::path::{Path, PathBuf};

use tensorcask::KeyKind;

/// The kinds of keys. Each has a store of its own, in a folder named after the kind.
pub const KINDS: [KeyKind; 3] = [KeyKind::Str, KeyKind::U64, KeyKind::Bytes];

/// The file in an identity's folder that lists its parts.
pub const RECORD: &str = "identity.json";
/// The file with the mean seconds of computation per sample.
pub const TIMING: &str = "timing.json";
/// The file that records the cap that was reached, and the size of the files at that time.
pub const FULL: &str = "full.json";
const JSON_SUFFIX: &str = ".json";
const PART_SUFFIX: &str = ".part";
const PRUNED_SUFFIX: &str = ".pruned";

/// Whether a name in a module's folder is the name of an identity.
pub fn is_identity(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of an identity's folder during its removal.
pub fn pruned(id: &str) -> String {
    format!("{id}{PRUNED_SUFFIX}")
}

/// The identity that was being removed in a folder of this name.
pub fn parse_pruned(name: &str) -> Option<&str> {
    name.strip_suffix(PRUNED_SUFFIX).filter(|id| is_identity(id))
}

/// The temporary path of a file of an identity, which is written there and then renamed to `path`.
pub fn part(path: &Path, unique: uuid::Uuid) -> PathBuf {
    path.with_extension(format!("{}{PART_SUFFIX}", unique.simple()))
}

/// Whether the caching layer makes files of this name in the folder of an identity.
pub fn is_file_of_identity(name: &str) -> bool {
    let files = [RECORD, TIMING, FULL];
    let part = name.strip_suffix(PART_SUFFIX).and_then(|stem| stem.split_once('.'));
    let of = |stem: &str| files.iter().any(|file| file.strip_suffix(JSON_SUFFIX) == Some(stem));
    // The suffix is a UUID, which has the form of an identity.
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
