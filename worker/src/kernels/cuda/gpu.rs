//! A GPU: its programs and its stream.
//!
//! All work goes through one stream, in order. Only reads wait.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, PinnedHostSlice, result, sys};
use cudarc::nvrtc::Ptx;

use super::driver::{device, driver_is_present, driver_version};
use super::profile::KernelProfile;
use super::program::{self, GpuProgram, compiled};
use super::staging::{UPLOADS, UploadStaging};
use super::timing::StreamEvent;
use crate::kernels::KernelError;

mod transfers;

/// Oldest compute capability whose tensor cores and copies the programs use.
const OLDEST: (i32, i32) = (8, 0);

/// Shared memory that needs no opt-in.
const FREELY_SHARED_BYTES: u32 = 48 << 10;

/// Most arguments of a function.
const MOST_ARGUMENTS: usize = 18;

/// A GPU; one thread uses it at a time.
pub(super) struct GpuDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    capability: (i32, i32),
    pub(super) processors: u32,
    /// Most bytes of shared memory per block.
    pub(super) shared_bytes: u32,
    /// By name, with the shared memory each may use.
    functions: RefCell<HashMap<&'static str, (CudaFunction, u32)>>,
    modules: RefCell<Vec<(GpuProgram, Arc<CudaModule>)>>,
    uploads: RefCell<UploadStaging>,
    downloads: RefCell<Option<PinnedHostSlice<u32>>>,
    /// The first failure since the last wait.
    failure: Cell<Option<KernelError>>,
    profile: RefCell<Option<KernelProfile>>,
}

impl GpuDevice {
    /// Opens a GPU by its CUDA number.
    pub(super) fn open(number: usize) -> Result<Self, KernelError> {
        if !driver_is_present() {
            return Err(KernelError::Device("libcuda is not found; install NVIDIA's driver".to_owned()));
        }
        let (driver, compiler) = (driver_version()?, program::version().map_err(text)?);
        // A driver loads code from compilers of its own CUDA version or older.
        if compiler.0 > driver.0 {
            return Err(KernelError::Device(format!(
                "the driver is made for CUDA {}.{}, libnvrtc is of CUDA {}.{}: install a newer driver, or NVRTC of CUDA {}",
                driver.0, driver.1, compiler.0, compiler.1, driver.0
            )));
        }
        let context = CudaContext::new(number).map_err(|error| match error.0 {
            sys::cudaError_enum::CUDA_ERROR_INVALID_DEVICE => {
                let count = CudaContext::device_count().unwrap_or(0);
                KernelError::Device(format!("there is no GPU {number}; the driver sees {count}, counted from 0"))
            }
            _ => device(error),
        })?;
        let capability = context.compute_capability().map_err(device)?;
        if capability < OLDEST {
            let ((major, minor), name) = (capability, context.name().unwrap_or_default());
            return Err(KernelError::Device(format!(
                "{name} has compute capability {major}.{minor}; at least {}.{} is needed",
                OLDEST.0, OLDEST.1
            )));
        }
        track_no_events(&context);
        let stream = context.new_stream().map_err(device)?;
        let attribute = |attribute| context.attribute(attribute).map(|value| value.unsigned_abs()).map_err(device);
        let gpu = Self {
            capability,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            functions: RefCell::default(),
            modules: RefCell::default(),
            uploads: RefCell::new(UploadStaging::new(&context, &stream, UPLOADS)?),
            downloads: RefCell::default(),
            failure: Cell::default(),
            profile: RefCell::new(KernelProfile::from_environment()),
            context,
            stream,
        };
        gpu.load(&[GpuProgram::Layers, GpuProgram::Rows])?;
        Ok(gpu)
    }

    /// Name and compute capability.
    pub(super) fn name(&self) -> String {
        let (major, minor) = self.capability;
        format!("{} (compute capability {major}.{minor})", self.context.name().unwrap_or_default())
    }

    pub(super) fn free_bytes(&self) -> Result<u64, KernelError> {
        self.context.mem_get_info().map(|(free, _)| free as u64).map_err(device)
    }

    /// Compiles and loads the programs that are not loaded yet.
    pub(super) fn load(&self, programs: &[GpuProgram]) -> Result<(), KernelError> {
        for &program in programs {
            if self.modules.borrow().iter().any(|(known, _)| *known == program) {
                continue;
            }
            let began = std::time::Instant::now();
            let code = compiled(program, self.capability).map_err(text)?;
            let module = self.context.load_module(Ptx::from_binary(code.to_vec())).map_err(device)?;
            tracing::info!(?program, seconds = began.elapsed().as_secs_f64(), "compiled for the GPU");
            self.modules.borrow_mut().push((program, module));
        }
        Ok(())
    }

    /// Records an event after all work queued so far.
    pub(super) fn mark(&self) -> Result<StreamEvent, KernelError> {
        self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(StreamEvent::new).map_err(device)
    }

    /// Keeps the first `failure` until the next wait.
    pub(super) fn keep(&self, failure: KernelError) {
        let first = self.failure.take().unwrap_or(failure);
        self.failure.set(Some(first));
    }

    /// Queues the function `name` of a loaded program; keeps a failure.
    ///
    /// `arguments` are its parameters in order, each in the low bits of a word.
    pub(super) fn launch(&self, name: &'static str, size: LaunchSize, arguments: &[u64]) {
        let LaunchSize { blocks, .. } = size;
        if blocks.contains(&0) {
            return;
        }
        let launched = match &mut *self.profile.borrow_mut() {
            None => self.try_launch(name, size, arguments),
            Some(profile) => self.mark().and_then(|began| {
                self.try_launch(name, size, arguments)?;
                profile.launched(name, began, self.mark()?);
                Ok(())
            }),
        };
        if let Err(error) = launched {
            self.keep(match error {
                KernelError::Device(problem) => KernelError::Device(format!("{name}: {problem}")),
                error => error,
            });
        }
    }

    #[expect(unsafe_code, reason = "a launch of a kernel")]
    fn try_launch(&self, name: &'static str, size: LaunchSize, arguments: &[u64]) -> Result<(), KernelError> {
        let LaunchSize { blocks: [x, y, z], threads, shared_bytes } = size;
        self.context.bind_to_thread().map_err(device)?;
        let function = self.function(name, shared_bytes)?;
        let mut parameters = [std::ptr::null_mut(); MOST_ARGUMENTS];
        for (parameter, argument) in parameters.iter_mut().zip(arguments) {
            *parameter = std::ptr::from_ref(argument).cast_mut().cast::<c_void>();
        }
        // SAFETY: the callers in this module pass what the function's source declares, and addresses of memory that
        // lives until the stream has come there: slices are freed in the stream's order.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (threads, 1, 1),
                shared_bytes,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(device)
    }

    fn function(&self, name: &'static str, shared_bytes: u32) -> Result<sys::CUfunction, KernelError> {
        let mut functions = self.functions.borrow_mut();
        let function = match functions.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let modules = self.modules.borrow();
                let loaded = modules.iter().find_map(|(_, module)| module.load_function(name).ok());
                let loaded = loaded.ok_or_else(|| KernelError::Device("the function is in no program".to_owned()))?;
                place.insert((loaded, FREELY_SHARED_BYTES))
            }
        };
        let (function, most) = function;
        if shared_bytes > *most {
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes).map_err(device)?;
            *most = shared_bytes;
        }
        Ok(function.cu_function())
    }
}

impl std::fmt::Debug for GpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gpu").field(&self.name()).finish()
    }
}

/// Blocks of a launch, threads per block, and shared memory per block.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaunchSize {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl LaunchSize {
    /// One block per row.
    pub(super) fn rows(rows: usize, threads: u32) -> Self {
        Self { blocks: [rows as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// One thread per pair of elements of a row.
    pub(super) fn pairs(rows: usize, pairs: usize) -> Self {
        let elements = Self::elements(pairs);
        Self { blocks: [rows as u32, elements.blocks[0], 1], ..elements }
    }

    /// One thread per element.
    pub(super) fn elements(elements: usize) -> Self {
        const THREADS: u32 = 256;
        Self { blocks: [elements.div_ceil(THREADS as usize) as u32, 1, 1], threads: THREADS, shared_bytes: 0 }
    }
}

fn text(error: program::CompileError) -> KernelError {
    KernelError::Device(error.to_string())
}

#[expect(unsafe_code, reason = "events would cost as much as small kernels")]
fn track_no_events(context: &CudaContext) {
    // SAFETY: all that is allocated here is used and freed on one stream.
    unsafe { context.disable_event_tracking() };
}
