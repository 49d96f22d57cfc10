//! Following other writers: new sealed segments, and new batches of active ones.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use std::collections::{HashMap, HashSet};

use super::core::Core;
use super::maintain::{memory_run, publish_run, uncovered};
use super::options::Recovery;
use super::rows::Source;
use crate::error::{Error, Result};
use crate::io::ReadFile;
use crate::names::{self, SegmentId, SegmentName};
use crate::segment::batch::Batch;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::{Front, read_front, walk};
use crate::segment::writer::SegmentWriter;

/// An active segment of another writer.
#[derive(Debug)]
struct Followed {
    front: Front,
    file: Arc<dyn ReadFile>,
    described: Arc<Path>,
    end_offset: u64,
    rows: u64,
}

/// What is known of the segments folder beside the view.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Segments that this handle writes or has written; it publishes them itself.
    own: HashSet<SegmentId>,
    followed: HashMap<SegmentId, Followed>,
    /// Files that do not check out, so that they are not tried again at every miss.
    bad: HashSet<SegmentId>,
}

impl Known {
    /// Notes a segment of this handle's own.
    pub(crate) fn own(&mut self, id: SegmentId) {
        self.own.insert(id);
    }

    /// Notes a file that does not check out.
    pub(crate) fn bad(&mut self, id: SegmentId) {
        self.bad.insert(id);
    }

    /// How many files do not check out.
    pub(crate) fn bad_files(&self) -> usize {
        self.bad.len()
    }
}

impl Core {
    /// Refreshes if the last time is long enough ago. Returns whether there was anything new.
    pub(crate) fn refresh_if_due(&self) -> Result<bool> {
        {
            let Some(mut last) = self.last_refresh.try_lock() else { return Ok(false) };
            if last.elapsed() < self.options.refresh_interval {
                return Ok(false);
            }
            *last = Instant::now();
        }
        self.refresh()
    }

    /// Takes in what others committed. O(files), and O(rows) of what is new.
    pub(crate) fn refresh(&self) -> Result<bool> {
        let mut known = self.known.lock();
        *self.last_refresh.lock() = Instant::now();
        self.counters.refreshes.fetch_add(1, Ordering::Relaxed);
        let mut changed = false;
        for entry in self.storage.list(Path::new(names::SEGMENTS))? {
            let taken = match names::parse_segment(&entry.name) {
                SegmentName::Sealed(id) if !known.own.contains(&id) && !known.bad.contains(&id) => {
                    self.take_sealed(&mut known, id).map_err(|error| (id, error))
                }
                SegmentName::Active(id) if !known.own.contains(&id) && !known.bad.contains(&id) => {
                    self.follow(&mut known, id).map_err(|error| (id, error))
                }
                _ => Ok(false),
            };
            match taken {
                Ok(new) => changed |= new,
                // Renamed or removed since it was listed: the next refresh sees what it became.
                Err((_, error)) if error.is_not_found() => {}
                Err((id, error)) => {
                    known.bad(id);
                    if self.options.recovery == Recovery::Strict || !error.is_corrupt() {
                        return Err(error);
                    }
                }
            }
        }
        drop(known);
        self.bound_reader_delta()?;
        Ok(changed)
    }

    fn take_sealed(&self, known: &mut Known, id: SegmentId) -> Result<bool> {
        if self.view.load().segments.contains_key(&id) {
            return Ok(false);
        }
        let segment = Arc::new(Segment::open(&*self.storage, &names::sealed(id), id)?);
        self.check_belongs(&segment.front, segment.described())?;
        self.saw_stamp(segment.seal.last_stamp);
        self.change_view(|view| {
            view.segments.insert(id, Arc::clone(&segment));
        });
        // Rows that were followed while the segment was active are found to be there already.
        self.admit_segment(&segment)?;
        known.followed.remove(&id);
        Ok(true)
    }

    /// A segment is of this store only if it has its identity and its kind of keys.
    pub(crate) fn check_belongs(&self, front: &Front, path: &Path) -> Result<()> {
        let header = &front.header;
        if header.store != self.identity.store || header.hash != self.identity.hash_id {
            return Err(Error::corrupt(
                path,
                0,
                format!("it belongs to store {}, not to {}", header.store, self.identity.store),
            ));
        }
        self.fix_key_kind(header.schema.key).map_err(|error| Error::corrupt(path, 0, error.to_string()))
    }

    fn follow(&self, known: &mut Known, id: SegmentId) -> Result<bool> {
        let followed = match known.followed.entry(id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = names::active(id);
                let described: Arc<Path> = self.storage.describe(&path).into();
                let file = self.storage.open(&path, self.options.segment_bytes + SegmentWriter::overhead_bytes())?;
                let front = match read_front(&described, &*file, id) {
                    Ok(front) => front,
                    // Its writer has just begun, or has died: its lane's next writer will tell.
                    Err(Error::Corrupt { .. }) => return Ok(false),
                    Err(error) => return Err(error),
                };
                self.check_belongs(&front, &described)?;
                let end_offset = front.frame.end_offset();
                entry.insert(Followed { front, file, described, end_offset, rows: 0 })
            }
        };
        let prefix = walk(&*followed.file, followed.front.seed, followed.end_offset, followed.rows)?;
        for frame in &prefix.frames {
            self.admit_batch(&followed.front, &*followed.file, &followed.described, *frame)?;
            followed.end_offset = frame.end_offset();
            followed.rows += u64::from(frame.rows);
        }
        Ok(!prefix.frames.is_empty())
    }

    /// Enters the rows of one committed batch into the delta.
    pub(crate) fn admit_batch(
        &self,
        front: &Front,
        file: &dyn ReadFile,
        path: &Arc<Path>,
        frame: Frame,
    ) -> Result<Arc<Batch>> {
        self.saw_stamp(frame.stamp);
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let batch = Arc::new(Batch::parse(path, &front.schema, frame, &message, false)?);
        let source = Source::Committed { segment: front.header.id(), batch: Arc::clone(&batch), first: 0 };
        let slot = self.add_slot(source.clone(), frame.rows)?;
        let tombstone = front.schema.is_tombstones();
        let _admission = self.admission();
        for row in 0..frame.rows {
            if let Some(key) = batch.columns.key(row as usize) {
                self.admit(self.hasher.hash(key), slot, row, tombstone, || source.row(slot, row));
            }
        }
        Ok(batch)
    }

    /// A reader writes no runs, so it keeps what has been sealed since in runs of its own in memory.
    fn bound_reader_delta(&self) -> Result<()> {
        if !self.read_only || self.delta.len() < self.options.delta_keys.max(1) {
            return Ok(());
        }
        let view = self.view.load_full();
        let fresh = uncovered(&view);
        if fresh.is_empty() {
            return Ok(());
        }
        // One run in memory at a time: it takes in the last one.
        let absorbed: Vec<_> = view.runs.iter().filter(|run| run.name.is_none()).cloned().collect();
        let segments = absorbed.iter().flat_map(|run| run.segments.iter().cloned()).chain(fresh).collect();
        publish_run(self, Arc::new(memory_run(self, segments, false)?), &absorbed);
        Ok(())
    }
}
