//! A decoder with the kernels of its device.

use std::path::Path;
use std::time::Duration;

use cosec_proto::sampling::SamplingParams;

use super::device::DeviceChoice;
use super::load::{self, LoadError, LoadOptions, ModelDescription};
use crate::decoder::{Batch, Decoder};
use crate::kernels::cpu::Cpu;
use crate::kernels::cuda::Cuda;
use crate::kernels::{CacheShape, KernelError, Kernels, Place};
use crate::rows::{Found, KeptRow, RowTask};

/// A decoder on the device that was chosen.
pub(super) enum PlacedDecoder {
    Cpu(Box<Decoder<Cpu>>),
    Cuda(Box<Decoder<Cuda>>),
}

impl PlacedDecoder {
    pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<(Self, ModelDescription), LoadError> {
        let host = Cpu::new(options.threads, options.cpus.as_ref()).map_err(LoadError::Threads)?;
        let DeviceChoice::Cuda(number) = options.device else {
            let (decoder, description) = load::load(path, options, host)?;
            return Ok((Self::Cpu(Box::new(decoder)), description));
        };
        let gpu = Cuda::open(number, host)
            .map_err(|error| LoadError::Device { device: options.device, cause: error.into() })?;
        tracing::info!(device = %options.device, name = gpu.name(), "GPU");
        let (mut decoder, description) = load::load(path, options, gpu)?;
        // What the GPU cannot do shows now and not in the first request.
        let place = Place { position: 0, blocks: &[0] };
        let batch = Batch { tokens: vec![0], places: vec![place], wanted: vec![0], ..Batch::default() };
        let mut found = Found::default();
        let draw = Some((SamplingParams::RAW, 0.5));
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
