//! `tensorcask why-miss`

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tensorcask::{Error, KeyKind, Location, Options, Reader, RowPlace};
use tensorcask_cache::identities::{StoredIdentity, list};

use crate::failure::Failure;
use crate::output::{Output, bytes, one_line, path_json};

/// Arguments of `why-miss`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A store, the folder of a wrapped module (<cache dir>/<module id>), or one of its identities.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    folder: PathBuf,
    /// The key or the id of the sample: text, a number, or hexadecimal bytes. Keys by content are bytes.
    key: String,
    /// The identity that missed (default: the last used one of the module).
    #[arg(long, value_name = "ID")]
    identity: Option<String>,
}

/// The files in an identity's folder that say that it is one, and that its cap was reached.
const RECORD: &str = "identity.json";
const FULL: &str = "full.json";

const KINDS: [KeyKind; 3] = [KeyKind::Str, KeyKind::U64, KeyKind::Bytes];

/// What a store says about a key.
enum Answer {
    Present(RowPlace),
    Deleted(RowPlace),
    Damaged(Error),
    Absent,
    /// The text is not a key of the store's kind: why not.
    OtherKind(String),
    /// The store is empty.
    Empty,
}

/// Explains why a key is not found. Ends with exit code 0 if it is found after all, 1 if it is not there, and 2 if it is
/// damaged or if files that may hold it are left out.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let folder = &arguments.folder;
    if folder.join("segments").is_dir() {
        if arguments.identity.is_some() {
            return Err(Failure::input(format!("{} is a store: leave --identity out", folder.display())));
        }
        return in_store(folder, &arguments.key, output);
    }
    let (module, id) = match id_of(folder) {
        Some(id) => {
            let resolved = folder.canonicalize().map_err(|error| Failure::io(folder, &error))?;
            (resolved.parent().unwrap_or(folder).to_path_buf(), Some(id))
        }
        None => (folder.clone(), arguments.identity.clone()),
    };
    let identities = list(&module)?;
    let ours = match &id {
        Some(id) => identities.iter().find(|identity| identity.id == *id),
        None => identities.first(),
    };
    let Some(ours) = ours else {
        return Err(Failure::input(match id {
            Some(id) => format!("{} has no identity {id:?}: `tensorcask identities` lists them", module.display()),
            None => {
                format!("{} is neither a store nor the folder of a wrapped module with an identity", folder.display())
            }
        }));
    };
    in_module(ours, &identities, &arguments.key, output)
}

/// The id of the identity whose folder this is.
fn id_of(folder: &Path) -> Option<String> {
    let name = folder.canonicalize().ok()?.file_name()?.to_str()?.to_owned();
    (folder.join(RECORD).is_file() || KINDS.iter().any(|kind| folder.join(kind.name()).join("segments").is_dir()))
        .then_some(name)
}

/// Explains a miss in one store.
fn in_store(store: &Path, text: &str, output: &Output) -> Result<(), Failure> {
    let reader = open(store)?;
    let answer = ask(&reader, text)?;
    let left_out = crate::store::left_out(&reader);
    let line = said(&answer, text, left_out);
    output.line(|| line, || json_of(&answer, store, text, left_out))?;
    end(&answer, text, store, left_out)
}

/// Explains a miss of an identity: its stores, and the other identities of the module.
fn in_module(ours: &StoredIdentity, all: &[StoredIdentity], text: &str, output: &Output) -> Result<(), Failure> {
    let mut worst: Option<(Answer, PathBuf, u64)> = None;
    let mut found = false;
    for (store, reader) in stores(ours)? {
        let (answer, left_out) = (ask(&reader, text)?, crate::store::left_out(&reader));
        let kind = reader.key_kind().map_or("no", KeyKind::name);
        output.line(
            || format!("this identity, {kind} keys: {}", said(&answer, text, left_out)),
            || with_identity(json_of(&answer, &store, text, left_out), ours),
        )?;
        found |= matches!(answer, Answer::Present(_));
        if worst.as_ref().is_none_or(|(before, ..)| rank(&answer, left_out) > rank(before, 0)) {
            worst = Some((answer, store, left_out));
        }
    }
    if worst.is_none() {
        output.line(
            || "this identity stores nothing yet".to_owned(),
            || json!({ "identity": ours.id, "key": text, "state": "empty" }),
        )?;
    }
    note_full(ours, output)?;
    for other in all.iter().filter(|other| other.id != ours.id) {
        for (store, reader) in stores(other)? {
            if let Answer::Present(place) = ask(&reader, text)? {
                let differences = ours.differences_to(other);
                let parts =
                    if differences.is_empty() { "nothing that is recorded".into() } else { differences.join("; ") };
                output.line(
                    || {
                        format!(
                            "identity {} has it{}, and differs in: {}",
                            other.id,
                            place_said(&place),
                            one_line(&parts)
                        )
                    },
                    || {
                        json!({
                            "identity": other.id, "key": text, "state": "elsewhere", "store": path_json(&store),
                            "differences": differences,
                        })
                    },
                )?;
            }
        }
    }
    match worst {
        _ if found => Ok(()),
        Some((answer, store, left_out)) => end(&answer, text, &store, left_out),
        None => Err(Failure::missing(format!("{} has no key {}", ours.folder.display(), one_line(text)))),
    }
}

/// Says that an identity stores nothing more because its cap was reached.
fn note_full(ours: &StoredIdentity, output: &Output) -> Result<(), Failure> {
    let full = ours.folder.join(FULL);
    if !full.is_file() {
        return Ok(());
    }
    output.line(
        || {
            format!(
                "its cap was reached ({} on disk): outputs that were computed after that were not stored; raise the cap, \
                 or remove other identities",
                bytes(ours.bytes)
            )
        },
        || json!({ "identity": ours.id, "full": true, "bytes": ours.bytes }),
    )
}

/// The stores of an identity.
fn stores(identity: &StoredIdentity) -> Result<Vec<(PathBuf, Reader)>, Failure> {
    let folders = KINDS.iter().map(|kind| identity.folder.join(kind.name()));
    folders
        .filter(|folder| folder.join("segments").is_dir())
        .map(|folder| Ok((folder.clone(), open(&folder)?)))
        .collect()
}

fn open(store: &Path) -> Result<Reader, Failure> {
    let (cache_dir, module) = crate::store::split(store)?;
    Options::new().open_reader(cache_dir, &module).map_err(|error| Failure::opening(&error))
}

fn ask(reader: &Reader, text: &str) -> Result<Answer, Failure> {
    let Some(kind) = reader.key_kind() else { return Ok(Answer::Empty) };
    let key = match crate::key::parse(text, kind) {
        Ok(key) => key,
        Err(why) => return Ok(Answer::OtherKind(why)),
    };
    Ok(match reader.locate(&key)? {
        Location::Present(place) => Answer::Present(place),
        Location::Deleted(place) => Answer::Deleted(place),
        Location::Damaged(error) => Answer::Damaged(error),
        _ => Answer::Absent,
    })
}

/// How much an answer says: the end of the command follows the one that says most.
fn rank(answer: &Answer, left_out: u64) -> u8 {
    match answer {
        Answer::Present(_) => 4,
        Answer::Damaged(_) => 3,
        Answer::Deleted(_) => 2,
        Answer::Absent => 1 + u8::from(left_out > 0) * 2,
        Answer::OtherKind(_) | Answer::Empty => 0,
    }
}

fn place_said(place: &RowPlace) -> String {
    match (&place.path, place.committed_s) {
        (Some(path), Some(time)) => format!(" in {}, put at {} UTC", path.display(), crate::report::date(time)),
        _ => " (it waits to be written)".to_owned(),
    }
}

fn said(answer: &Answer, text: &str, left_out: u64) -> String {
    let key = one_line(text);
    match answer {
        Answer::Present(place) => format!("{key} is there{}", place_said(place)),
        Answer::Deleted(place) => {
            format!("{key} was deleted: its newest row is a tombstone{}", place_said(place))
        }
        Answer::Damaged(error) => {
            format!("{key} is damaged: {error}; put it again")
        }
        Answer::Absent if left_out > 0 => format!(
            "{key} is in no file that can be read, but {left_out} files of the store are left out and may hold it: \
             `tensorcask verify` lists them"
        ),
        Answer::Absent => format!(
            "{key} is not there: it was never put here (another identity or preprocessing gives other keys), was not \
             flushed before its writer died, was evicted, or was deleted and its tombstone compacted away"
        ),
        Answer::OtherKind(why) => format!("{key} cannot be a key of this store: {why}"),
        Answer::Empty => "nothing was ever put here".to_owned(),
    }
}

fn json_of(answer: &Answer, store: &Path, text: &str, left_out: u64) -> Json {
    let (state, place, why) = match answer {
        Answer::Present(place) => ("present", Some(place), None),
        Answer::Deleted(place) => ("deleted", Some(place), None),
        Answer::Damaged(error) => ("damaged", None, Some(error.to_string())),
        Answer::Absent => ("absent", None, None),
        Answer::OtherKind(why) => ("other_kind", None, Some(why.clone())),
        Answer::Empty => ("empty", None, None),
    };
    json!({
        "store": path_json(store), "key": text, "state": state, "why": why, "left_out_files": left_out,
        "segment": place.and_then(|place| place.path.as_deref()).map(path_json),
        "committed_s": place.and_then(|place| place.committed_s),
    })
}

fn with_identity(mut json: Json, identity: &StoredIdentity) -> Json {
    if let Some(object) = json.as_object_mut() {
        object.insert("identity".into(), identity.id.clone().into());
    }
    json
}

fn end(answer: &Answer, text: &str, store: &Path, left_out: u64) -> Result<(), Failure> {
    match answer {
        Answer::Present(_) => Ok(()),
        Answer::Damaged(_) => Err(Failure::damage()),
        Answer::Absent if left_out > 0 => Err(Failure::damage()),
        _ => Err(Failure::missing(format!("there is no key {} in {}", one_line(text), store.display()))),
    }
}
