//! The rank of this process in a distributed job.

use crate::error::{Error, Result};

/// A rank of a distributed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// The number of this process, from 0.
    pub rank: u16,
    /// The number of processes.
    pub world_size: u16,
}

/// Names of the variables that launchers set, rank first: torchrun, Open MPI, Slurm.
const VARIABLES: [(&str, &str); 3] =
    [("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")];

impl Rank {
    /// The only process.
    pub const ALONE: Self = Self { rank: 0, world_size: 1 };

    /// Reads the environment variables of `torchrun`, `mpirun` or `srun`; [`Rank::ALONE`] without them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the variables are not valid numbers.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let Some((rank, size)) = VARIABLES.iter().find(|(rank, size)| get(rank).is_some() && get(size).is_some())
        else {
            return Ok(Self::ALONE);
        };
        let number = |name: &str| {
            let text = get(name).unwrap_or_default();
            text.trim().parse::<u16>().map_err(|_| {
                Error::invalid(format!(
                    "the environment variable {name} is {text:?}: a number below 65536 was expected"
                ))
            })
        };
        Self::new(number(rank)?, number(size)?)
    }

    /// Rank `rank` of `world_size`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rank is not below the size.
    pub fn new(rank: u16, world_size: u16) -> Result<Self> {
        if rank < world_size {
            Ok(Self { rank, world_size })
        } else {
            Err(Error::invalid(format!("rank {rank} of {world_size} processes: ranks count from 0")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known() {
        let of = |pairs: &'static [(&str, &str)]| {
            Rank::from_variables(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[]).unwrap(), Rank::ALONE);
        assert_eq!(of(&[("RANK", "3"), ("WORLD_SIZE", "4")]).unwrap(), Rank { rank: 3, world_size: 4 });
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")]).unwrap().world_size, 2);
        assert_eq!(of(&[("RANK", "3")]).unwrap(), Rank::ALONE);
        assert!(of(&[("RANK", "4"), ("WORLD_SIZE", "4")]).is_err());
        assert!(of(&[("RANK", "x"), ("WORLD_SIZE", "4")]).is_err());
    }
}
