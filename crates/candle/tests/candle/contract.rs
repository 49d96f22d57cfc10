//! The contract of the caching layer, over candle.

use tensorcask_candle::Candle;

tensorcask_cache::contract!(Candle);
