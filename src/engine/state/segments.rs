//! The sealed segments of a version: a map that is cheap to copy with one segment more.
//!
//! Each seal publishes a new version. Copying a list of all segments would cost O(segments) a seal. Here a copy shares
//! all groups of neighbouring segments except the one that changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// Sequence numbers of a lane that share a group.
const GROUP_LEN: u64 = 128;

type Group = BTreeMap<SegmentId, Arc<Segment>>;

/// Segments by name, in order of lane and sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segments {
    groups: BTreeMap<(u16, u64), Arc<Group>>,
    len: usize,
}

fn group(id: SegmentId) -> (u16, u64) {
    (id.lane, id.sequence / GROUP_LEN)
}

impl Segments {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The segment called `id`.
    pub(crate) fn get(&self, id: &SegmentId) -> Option<&Arc<Segment>> {
        self.groups.get(&group(*id))?.get(id)
    }

    /// Whether there is a segment called `id`.
    pub(crate) fn contains_key(&self, id: &SegmentId) -> bool {
        self.get(id).is_some()
    }

    /// Adds a segment, replacing another of its name. O(log segments), and O(segments / 128) if groups are shared with
    /// copies.
    pub(crate) fn insert(&mut self, id: SegmentId, segment: Arc<Segment>) {
        let group = self.groups.entry(group(id)).or_default();
        self.len += usize::from(Arc::make_mut(group).insert(id, segment).is_none());
    }

    /// Removes a segment, if it is there. As [`Segments::insert`].
    pub(crate) fn remove(&mut self, id: &SegmentId) {
        if let Some(group) = self.groups.get_mut(&group(*id)) {
            self.len -= usize::from(Arc::make_mut(group).remove(id).is_some());
        }
    }

    /// The segments, in order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.groups.values().flat_map(|group| group.values())
    }

    /// Their names, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &SegmentId> {
        self.groups.values().flat_map(|group| group.keys())
    }
}

impl Extend<(SegmentId, Arc<Segment>)> for Segments {
    fn extend<T: IntoIterator<Item = (SegmentId, Arc<Segment>)>>(&mut self, segments: T) {
        segments.into_iter().for_each(|(id, segment)| self.insert(id, segment));
    }
}
