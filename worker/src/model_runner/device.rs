//! Which kernels run a model.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use cosec_proto::draw::Warp;
use serde::{Deserialize, Serialize};

use super::{LoadError, LoadOptions, ModelDescription};
use crate::decoder::{Batch, Decoder};
use crate::kernels::cpu::Cpu;
use crate::kernels::cuda::Cuda;
use crate::kernels::{CacheShape, KernelError, Kernels, Place};
use crate::loader;
use crate::rows::{Found, KeptRow, RowTask};

/// Where the forward pass runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// On this machine's cores.
    #[default]
    Cpu,
    /// On the NVIDIA GPU of this number, as CUDA counts them.
    Cuda(usize),
}

impl DeviceChoice {
    /// Tokens of a forward pass that make good use of the device, and keep nobody waiting for long.
    #[must_use]
    pub fn step_tokens(self) -> usize {
        match self {
            Self::Cpu => 512,
            Self::Cuda(_) => 2048,
        }
    }

    /// The devices whose results are alike.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("cuda") {
            Some("") => Some(0),
            Some(number) => number.strip_prefix(':').and_then(|number| number.parse().ok()),
            None => None,
        };
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(number)) => Ok(Self::Cuda(number)),
            _ => Err(format!("device is {text:?}; expected cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Cpu => f.write_str(self.kind()),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

/// A decoder on the device that was chosen.
pub(super) enum PlacedDecoder {
    Cpu(Box<Decoder<Cpu>>),
    Cuda(Box<Decoder<Cuda>>),
}

impl PlacedDecoder {
    pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<(Self, ModelDescription), LoadError> {
        let host = Cpu::new(options.threads, options.cpus.as_ref()).map_err(LoadError::Threads)?;
        let DeviceChoice::Cuda(number) = options.device else {
            let (decoder, description) = loader::load(path, options, host)?;
            return Ok((Self::Cpu(Box::new(decoder)), description));
        };
        let gpu = Cuda::open(number, host)
            .map_err(|error| LoadError::Device { device: options.device, cause: error.into() })?;
        tracing::info!(device = %options.device, name = gpu.name(), "GPU");
        let (mut decoder, description) = loader::load(path, options, gpu)?;
        // What the GPU cannot do shows now and not in the first request.
        let place = Place { position: 0, blocks: &[0] };
        let batch = Batch { tokens: vec![0], places: vec![place], wanted: vec![0], ..Batch::default() };
        let mut found = Found::default();
        let draw = Some((Warp::RAW, 0.5));
        decoder.forward_rows(&batch, &mut [RowTask { views: &[], draw, keep: true, found: &mut found }])?;
        Ok((Self::Cuda(Box::new(decoder)), description))
    }

    /// As [`Decoder::forward`].
    pub(super) fn forward(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        match self {
            Self::Cpu(decoder) => decoder.forward(batch, logits),
            Self::Cuda(decoder) => decoder.forward(batch, logits),
        }
    }

    /// As [`Decoder::forward_rows`].
    pub(super) fn forward_rows(
        &mut self,
        batch: &Batch<'_>,
        tasks: &mut [RowTask<'_>],
    ) -> Result<Duration, KernelError> {
        match self {
            Self::Cpu(decoder) => decoder.forward_rows(batch, tasks),
            Self::Cuda(decoder) => decoder.forward_rows(batch, tasks),
        }
    }

    /// As [`Kernels::read_kept`].
    pub(super) fn read_kept(&self, row: &KeptRow, task: &mut RowTask<'_>) -> Result<(), KernelError> {
        match self {
            Self::Cpu(decoder) => decoder.kernels().read_kept(row, task),
            Self::Cuda(decoder) => decoder.kernels().read_kept(row, task),
        }
    }

    pub(super) fn cache_shape(&self) -> CacheShape {
        match self {
            Self::Cpu(decoder) => decoder.cache_shape(),
            Self::Cuda(decoder) => decoder.cache_shape(),
        }
    }

    /// Pins the calling thread, where the threads that it hands work to are pinned.
    pub(super) fn settle_caller(&self) {
        match self {
            Self::Cpu(decoder) => decoder.kernels().settle_caller(),
            Self::Cuda(decoder) => decoder.kernels().settle_caller(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda1", "cuda:1:2", "candle"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains(&format!("device is {text:?}; expected cpu")), "{error}");
        }
    }
}
