//! The contract of the caching layer, over `tch`.

use tensorcask_torch::Torch;

tensorcask_cache::contract!(Torch);
