//! Chooses the entry that a full cache evicts.

/// Where an entry lies in its shard.
pub(crate) type Slot = u32;

/// A doubly linked list through the slots, most recently used first. `None` ends it.
#[derive(Debug, Default)]
pub(crate) struct Lru {
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

    /// Sets the older neighbour of `newer`; without `newer`, the newest entry of the list.
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

impl Lru {
    /// Notes a new entry in `slot`.
    pub(crate) fn inserted(&mut self, slot: Slot) {
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

    /// Notes that a lookup found the entry in `slot`.
    pub(crate) fn hit(&mut self, slot: Slot) {
        if self.newest != Some(slot) {
            self.removed(slot);
            self.inserted(slot);
        }
    }

    /// Notes that the entry in `slot` is gone: evicted, replaced or removed.
    pub(crate) fn removed(&mut self, slot: Slot) {
        let Some(Link { newer, older }) = self.link(slot).map(std::mem::take) else { return };
        self.set_older_of(newer, older);
        self.set_newer_of(older, newer);
    }

    /// The entry to evict next.
    pub(crate) fn victim(&self) -> Option<Slot> {
        self.oldest
    }

    /// Notes that all entries are gone.
    pub(crate) fn cleared(&mut self) {
        *self = Self::default();
    }
}
