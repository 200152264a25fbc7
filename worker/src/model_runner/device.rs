//! Which kernels run a model.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::{LoadError, LoadOptions, ModelDescription};
use crate::decoder::{Batch, Decoder};
use crate::kernels::candle::Candle;
use crate::kernels::cpu::Cpu;
use crate::kernels::{CacheShape, KernelError, Place};
use crate::loader;

/// Where the forward pass runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// On this machine's cores; a row has the same bits in every batch.
    #[default]
    Cpu,
    /// On the GPU of this number, as CUDA counts them.
    Cuda(usize),
    /// On this machine's cores what would run on the GPU: slow, to check it where there is none.
    CandleCpu,
}

impl DeviceChoice {
    /// The devices whose results are alike.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
            Self::CandleCpu => "candle-cpu",
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = match cfg!(feature = "cuda") {
            true => "expected cpu, cuda, cuda:N or candle-cpu",
            false => "expected cpu or candle-cpu; this is a build without CUDA",
        };
        let number = match text.strip_prefix("cuda") {
            Some("") => Some(0),
            Some(number) => number.strip_prefix(':').and_then(|number| number.parse().ok()),
            None => None,
        };
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            ("candle-cpu", _) => Ok(Self::CandleCpu),
            (_, Some(number)) if cfg!(feature = "cuda") => Ok(Self::Cuda(number)),
            _ => Err(format!("device is {text:?}; {expected}")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Cpu | Self::CandleCpu => f.write_str(self.kind()),
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
    /// Rows that came from the device are read on the threads of `host`.
    Candle {
        decoder: Box<Decoder<Candle>>,
        host: Cpu,
    },
}

impl PlacedDecoder {
    pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<(Self, ModelDescription), LoadError> {
        let host = Cpu::new(options.threads, options.cpus.as_ref()).map_err(LoadError::Threads)?;
        let device = match options.device {
            DeviceChoice::Cpu => {
                let (decoder, description) = loader::load(path, options, host)?;
                return Ok((Self::Cpu(Box::new(decoder)), description));
            }
            DeviceChoice::CandleCpu => Device::Cpu,
            DeviceChoice::Cuda(number) => Device::new_cuda(number)
                .map_err(|cause| LoadError::Device { device: options.device, cause: cause.to_string() })?,
        };
        let (mut decoder, description) = loader::load(path, options, Candle::new(device))?;
        // What the device cannot do shows now and not in the first request.
        let place = Place { position: 0, blocks: &[0] };
        let batch = Batch { tokens: vec![0], places: vec![place], wanted: vec![0], ..Batch::default() };
        decoder.forward(&batch, &mut Vec::new())?;
        Ok((Self::Candle { decoder: Box::new(decoder), host }, description))
    }

    /// As [`Decoder::forward`].
    pub(super) fn forward(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        match self {
            Self::Cpu(decoder) => decoder.forward(batch, logits),
            Self::Candle { decoder, .. } => decoder.forward(batch, logits),
        }
    }

    pub(super) fn cache_shape(&self) -> CacheShape {
        match self {
            Self::Cpu(decoder) => decoder.cache_shape(),
            Self::Candle { decoder, .. } => decoder.cache_shape(),
        }
    }

    /// The threads for what is done with logits.
    pub(super) fn host(&self) -> &Cpu {
        match self {
            Self::Cpu(decoder) => decoder.kernels(),
            Self::Candle { host, .. } => host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "candle-cpu"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda1", "cuda:1:2", "candle"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains(&format!("device is {text:?}; expected cpu")), "{error}");
        }
    }

    #[test]
    fn cuda_is_what_the_build_says() {
        for (text, number) in [("cuda", 0), ("cuda:0", 0), ("cuda:7", 7)] {
            let parsed = text.parse::<DeviceChoice>();
            if cfg!(feature = "cuda") {
                assert_eq!(parsed, Ok(DeviceChoice::Cuda(number)));
            } else {
                assert!(parsed.unwrap_err().contains("without CUDA"));
            }
        }
    }
}
