//! The value cache of a store: decoded values, and an epoch that prevents serving superseded ones.

use bytes::Bytes;

use crate::engine::options::{Options, ValueCacheFill};
use crate::engine::report::ValueCacheStats;
use crate::engine::state::byte_cache::{ByteCache, Weigh};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::value::Value;

/// The value cache.
///
/// A reader loads the epoch before it looks a key up, and caches the value only if the epoch is still the same. A put
/// increments the epoch before it removes the old value. So either the reader sees the new epoch, or the put removes
/// its value.
#[derive(Debug)]
pub(crate) struct ValueCache {
    cache: Option<ByteCache<Value>>,
    fill: ValueCacheFill,
    epoch: AtomicU64,
}

impl ValueCache {
    pub(crate) fn new(options: &Options) -> Self {
        let cache = (options.value_cache_bytes > 0)
            .then(|| ByteCache::new(options.value_cache_bytes, options.value_cache_policy));
        Self { cache, fill: options.value_cache_fill, epoch: AtomicU64::new(0) }
    }

    /// Whether values are cached.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.cache.is_some()
    }

    /// Whether values are cached when they are put.
    pub(crate) fn fills_on_put(&self) -> bool {
        self.is_on() && self.fill != ValueCacheFill::OnRead
    }

    /// The epoch, which must be loaded before a lookup.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// The value of `key`, if it is cached.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<Value> {
        self.cache.as_ref()?.get(hash, key)
    }

    /// Caches a value that was read, unless a put may have superseded it since `epoch`.
    pub(crate) fn keep_read(&self, hash: u64, key: &[u8], value: &Value, epoch: u64) {
        let Some(cache) = &self.cache else { return };
        if self.fill == ValueCacheFill::OnWrite || self.epoch() != epoch {
            return;
        }
        cache.insert_if(hash, key, detached(value), || self.epoch() == epoch);
    }

    /// Caches a value that was just put. The caller holds the right to insert rows.
    pub(crate) fn keep_put(&self, hash: u64, key: &[u8], value: &Value) {
        if let Some(cache) = &self.cache {
            cache.insert(hash, key, detached(value));
        }
    }

    /// Drops the values of keys whose newer rows were inserted.
    pub(crate) fn supersede<'k>(&self, keys: impl Iterator<Item = (u64, &'k [u8])>) {
        if let Some(cache) = &self.cache {
            self.epoch.fetch_add(1, Ordering::SeqCst);
            keys.for_each(|(hash, key)| {
                cache.remove(hash, key);
            });
        }
    }

    /// Drops everything, since a row was inserted whose key cannot be read.
    pub(crate) fn supersede_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.clear();
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        self.cache.iter().for_each(ByteCache::clear);
    }

    /// Entries, bytes and counters, if values are cached.
    pub(crate) fn stats(&self) -> Option<ValueCacheStats> {
        self.cache.as_ref().map(ByteCache::stats)
    }
}

/// A copy that shares no memory with a segment or a waiting batch.
fn detached(value: &Value) -> Value {
    let all = |items: &[Value]| items.iter().map(detached).collect();
    match value {
        Value::Tensor(tensor) => Value::Tensor(tensor.view().to_tensor()),
        Value::Bytes(bytes) => Value::Bytes(Bytes::copy_from_slice(bytes)),
        Value::Map(items) => Value::Map(items.iter().map(|(name, item)| (name.clone(), detached(item))).collect()),
        Value::List(items) => Value::List(all(items)),
        Value::Tuple(items) => Value::Tuple(all(items)),
        scalar => scalar.clone(),
    }
}

impl Weigh for Value {
    fn weight_bytes(&self) -> usize {
        const NODE: usize = std::mem::size_of::<Value>();
        NODE + match self {
            Self::Tensor(tensor) => tensor.data().len() + size_of_val(tensor.shape()),
            Self::Str(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Map(items) => items.iter().map(|(name, item)| name.len() + NODE + item.weight_bytes()).sum(),
            Self::List(items) | Self::Tuple(items) => items.iter().map(Weigh::weight_bytes).sum(),
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_read_before_a_put_is_not_cached_after_it() {
        let cache = ValueCache::new(&Options::new().value_cache_bytes(1 << 20));
        let epoch = cache.epoch();
        cache.keep_read(1, b"a", &Value::Int(1), epoch);
        assert_eq!(cache.get(1, b"a"), Some(Value::Int(1)));
        cache.supersede([(1, &b"a"[..])].into_iter());
        cache.keep_read(1, b"a", &Value::Int(1), epoch);
        assert_eq!(cache.get(1, b"a"), None, "the epoch is over");
        cache.keep_read(1, b"a", &Value::Int(2), cache.epoch());
        assert_eq!(cache.get(1, b"a"), Some(Value::Int(2)));
        cache.supersede_all();
        assert_eq!(cache.get(1, b"a"), None);
    }

    #[test]
    fn only_puts_fill_it_if_the_options_say_so() {
        let cache =
            ValueCache::new(&Options::new().value_cache_bytes(1 << 20).value_cache_fill(ValueCacheFill::OnWrite));
        cache.keep_read(1, b"a", &Value::Int(1), cache.epoch());
        assert_eq!((cache.get(1, b"a"), cache.fills_on_put()), (None, true));
        cache.keep_put(1, b"a", &Value::Int(1));
        assert_eq!(cache.get(1, b"a"), Some(Value::Int(1)));
        assert!(!ValueCache::new(&Options::new()).is_on());
    }
}
