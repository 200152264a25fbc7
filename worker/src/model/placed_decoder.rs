//! A decoder with the kernels of its device.

use std::path::Path;
use std::time::Duration;

use cosec_proto::sampling::SamplingParams;

use super::device::DeviceChoice;
use super::load::{self, LoadOptions, ModelDescription, ModelLoadError};
use crate::decoder::{DecoderBatch, DecoderModel};
use crate::kernels::cpu::CpuKernels;
use crate::kernels::cuda::CudaKernels;
use crate::kernels::{CacheShape, KernelError, Kernels, TokenPlace};
use crate::logits_view::{KeptLogits, LogitsTask, TaskResult};

/// A decoder on the device that was chosen.
pub(super) enum PlacedDecoder {
    Cpu(Box<DecoderModel<CpuKernels>>),
    Cuda(Box<DecoderModel<CudaKernels>>),
}

/// Calls the decoder, whichever device it is on.
macro_rules! on_device {
    ($placed:expr, $decoder:ident => $call:expr) => {
        match $placed {
            Self::Cpu($decoder) => $call,
            Self::Cuda($decoder) => $call,
        }
    };
}

impl PlacedDecoder {
    pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<(Self, ModelDescription), ModelLoadError> {
        let host = CpuKernels::new(options.threads, options.cpus.as_ref()).map_err(ModelLoadError::Threads)?;
        let DeviceChoice::Cuda(number) = options.device else {
            let (decoder, description) = load::load(path, options, host)?;
            return Ok((Self::Cpu(Box::new(decoder)), description));
        };
        let gpu = CudaKernels::open(number, host)
            .map_err(|error| ModelLoadError::Device { device: options.device, cause: error.into() })?;
        tracing::info!(device = %options.device, name = gpu.name(), "GPU");
        let (mut decoder, description) = load::load(path, options, gpu)?;
        // A GPU that cannot run the model must fail now, not in the first request.
        let place = TokenPlace { position: 0, blocks: &[0] };
        let batch = DecoderBatch { tokens: vec![0], places: vec![place], wanted: vec![0], ..DecoderBatch::default() };
        let mut found = TaskResult::default();
        let draw = Some((SamplingParams::RAW, 0.5));
        decoder.forward_rows(&batch, &mut [LogitsTask { views: &[], draw, keep: true, found: &mut found }])?;
        Ok((Self::Cuda(Box::new(decoder)), description))
    }

    /// As [`DecoderModel::forward`].
    pub(super) fn forward(&mut self, batch: &DecoderBatch<'_>, logits: &mut Vec<f32>) -> Result<(), KernelError> {
        on_device!(self, decoder => decoder.forward(batch, logits))
    }

    /// As [`DecoderModel::forward_rows`].
    pub(super) fn forward_rows(
        &mut self,
        batch: &DecoderBatch<'_>,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        on_device!(self, decoder => decoder.forward_rows(batch, tasks))
    }

    /// As [`Kernels::read_kept`].
    pub(super) fn read_kept(&self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), KernelError> {
        on_device!(self, decoder => decoder.kernels().read_kept(row, task))
    }

    pub(super) fn cache_shape(&self) -> CacheShape {
        on_device!(self, decoder => decoder.cache_shape())
    }

    /// Pins the calling thread if the kernels' own threads are pinned.
    pub(super) fn pin_caller(&self) {
        on_device!(self, decoder => decoder.kernels().pin_caller());
    }
}
