//! Which entry of a full cache goes.

use std::fmt;

use crate::engine::options::HotPolicy;

/// Where an entry lies in its shard.
pub(crate) type Slot = u32;

/// Decides what to evict. It is told of every change of its shard and keeps its own order of the slots.
pub(crate) trait Policy: Send + fmt::Debug {
    /// A new entry lies in `slot`.
    fn inserted(&mut self, slot: Slot, hash: u64, weight_bytes: usize);
    /// The entry in `slot` was found by a lookup.
    fn hit(&mut self, slot: Slot);
    /// The entry in `slot` is gone: evicted, replaced or removed.
    fn removed(&mut self, slot: Slot);
    /// The entry to evict next; `None` to evict nothing.
    fn victim(&self) -> Option<Slot>;
    /// All entries are gone.
    fn cleared(&mut self);
}

/// A doubly linked list through the slots, most recently used first. `None` ends it.
#[derive(Debug, Default)]
struct Lru {
    links: Vec<Link>,
    newest: Option<Slot>,
    oldest: Option<Slot>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    newer: Option<Slot>,
    older: Option<Slot>,
}

impl Lru {
    fn link(&mut self, slot: Slot) -> Option<&mut Link> {
        self.links.get_mut(slot as usize)
    }

    /// The field that points at the older neighbour of `newer`: the list's own end if there is no `newer`.
    fn set_older_of(&mut self, newer: Option<Slot>, older: Option<Slot>) {
        match newer {
            None => self.newest = older,
            Some(slot) => {
                if let Some(link) = self.link(slot) {
                    link.older = older;
                }
            }
        }
    }

    fn set_newer_of(&mut self, older: Option<Slot>, newer: Option<Slot>) {
        match older {
            None => self.oldest = newer,
            Some(slot) => {
                if let Some(link) = self.link(slot) {
                    link.newer = newer;
                }
            }
        }
    }
}

impl Policy for Lru {
    fn inserted(&mut self, slot: Slot, _hash: u64, _weight_bytes: usize) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link::default());
        }
        let older = self.newest;
        if let Some(link) = self.link(slot) {
            *link = Link { newer: None, older };
        }
        self.set_newer_of(older, Some(slot));
        self.newest = Some(slot);
    }

    fn hit(&mut self, slot: Slot) {
        if self.newest != Some(slot) {
            self.removed(slot);
            self.inserted(slot, 0, 0);
        }
    }

    fn removed(&mut self, slot: Slot) {
        let Some(Link { newer, older }) = self.link(slot).map(std::mem::take) else { return };
        self.set_older_of(newer, older);
        self.set_newer_of(older, newer);
    }

    fn victim(&self) -> Option<Slot> {
        self.oldest
    }

    fn cleared(&mut self) {
        *self = Self::default();
    }
}

#[derive(Debug)]
struct StopWhenFull;

impl Policy for StopWhenFull {
    fn inserted(&mut self, _slot: Slot, _hash: u64, _weight_bytes: usize) {}
    fn hit(&mut self, _slot: Slot) {}
    fn removed(&mut self, _slot: Slot) {}
    fn victim(&self) -> Option<Slot> {
        None
    }
    fn cleared(&mut self) {}
}

impl HotPolicy {
    /// The policy, of an empty shard.
    pub(crate) fn eviction(self) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru::default()),
            Self::StopWhenFull => Box::new(StopWhenFull),
        }
    }
}
