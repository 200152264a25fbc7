//! A GPU: its memory, its programs, and what is queued on it.
//!
//! All work goes through one stream, in order. Nothing is waited for but what the host reads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError,
    PinnedHostSlice, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::profile::Profile;
use super::program::{self, Program, compiled};
use crate::kernels::KernelError;

/// Where something lies in the GPU's memory; 0 stands for nothing.
pub(super) type Address = u64;

/// Oldest compute capability whose tensor cores and copies the programs use.
const OLDEST: (i32, i32) = (8, 0);

/// Numbers of 32 bits that are on their way to the GPU at a time, at first.
const UPLOADS: usize = 1 << 16;

/// More bytes than these must be asked for.
const FREELY_SHARED_BYTES: u32 = 48 << 10;

/// Most arguments of a function.
const MOST_ARGUMENTS: usize = 18;

/// A GPU that is used by one thread at a time.
pub(super) struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    capability: (i32, i32),
    pub(super) processors: u32,
    /// Most bytes that the threads of a block share.
    pub(super) shared_bytes: u32,
    /// By name, with the most bytes that they may share.
    functions: RefCell<HashMap<&'static str, (CudaFunction, u32)>>,
    modules: RefCell<Vec<(Program, Arc<CudaModule>)>>,
    uploads: RefCell<Uploads>,
    downloads: RefCell<Option<PinnedHostSlice<u32>>>,
    /// The first failure since the last time that somebody waited.
    failure: Cell<Option<KernelError>>,
    profile: RefCell<Option<Profile>>,
}

/// Small things on their way to the GPU: they are written behind each other until the stream has been waited for.
struct Uploads {
    host: PinnedHostSlice<u32>,
    device: CudaSlice<u32>,
    used: usize,
    /// Buffers that were too small; operations in the queue still read them.
    outgrown: Vec<(PinnedHostSlice<u32>, CudaSlice<u32>)>,
}

impl Gpu {
    /// The GPU of this number, as CUDA counts them.
    pub(super) fn open(number: usize) -> Result<Self, KernelError> {
        if !driver_is_present() {
            return Err(KernelError::Device("libcuda is not found; install NVIDIA's driver".to_owned()));
        }
        let (driver, compiler) = (driver_version()?, program::version().map_err(text)?);
        // A driver loads what compilers of its own version and older ones make.
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
            uploads: RefCell::new(Uploads::new(&context, &stream, UPLOADS)?),
            downloads: RefCell::default(),
            failure: Cell::default(),
            profile: RefCell::new(Profile::from_environment()),
            context,
            stream,
        };
        gpu.load(&[Program::Layers, Program::Rows])?;
        Ok(gpu)
    }

    /// What the GPU is.
    pub(super) fn name(&self) -> String {
        let (major, minor) = self.capability;
        format!("{} (compute capability {major}.{minor})", self.context.name().unwrap_or_default())
    }

    pub(super) fn free_bytes(&self) -> Result<u64, KernelError> {
        self.context.mem_get_info().map(|(free, _)| free as u64).map_err(device)
    }

    /// Compiles and loads the programs that are not there yet.
    pub(super) fn load(&self, programs: &[Program]) -> Result<(), KernelError> {
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

    /// Memory whose content is undefined.
    #[expect(unsafe_code, reason = "memory that is written before it is read")]
    pub(super) fn allocate<T: DeviceRepr>(&self, elements: usize) -> Result<CudaSlice<T>, KernelError> {
        // SAFETY: `T` is a plain number, of which every bit pattern is one.
        unsafe { self.stream.alloc(elements.max(1)) }.map_err(|error| out_of_memory::<T>(elements, error))
    }

    /// Memory of zeros.
    pub(super) fn zeros<T: DeviceRepr + cudarc::driver::ValidAsZeroBits>(
        &self,
        elements: usize,
    ) -> Result<CudaSlice<T>, KernelError> {
        self.stream.alloc_zeros(elements.max(1)).map_err(|error| out_of_memory::<T>(elements, error))
    }

    /// A copy of `values`, which is waited for.
    pub(super) fn copy<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, KernelError> {
        let mut slice = self.allocate(values.len())?;
        if !values.is_empty() {
            self.stream.memcpy_htod(values, &mut slice).map_err(device)?;
            self.stream.synchronize().map_err(device)?;
        }
        Ok(slice)
    }

    /// Where `slice` lies. It must not be dropped before the operations that use it are queued.
    pub(super) fn address<T>(&self, slice: &CudaSlice<T>) -> Address {
        slice.device_ptr(&self.stream).0
    }

    /// Queues a copy of small `numbers` to a place that is theirs until somebody waits.
    pub(super) fn upload(&self, numbers: &[u32]) -> Result<Address, KernelError> {
        let mut uploads = self.uploads.borrow_mut();
        let at = self.stage(&mut uploads, numbers)?;
        let to = self.address(&uploads.device) + 4 * at as u64;
        self.copy_staged(&uploads, at..at + numbers.len(), to)?;
        Ok(to)
    }

    /// Queues a copy of `values` to the beginning of `to`.
    pub(super) fn write(&self, values: &[f32], to: &CudaSlice<f32>) -> Result<(), KernelError> {
        let mut uploads = self.uploads.borrow_mut();
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let at = self.stage(&mut uploads, &bits)?;
        self.copy_staged(&uploads, at..at + values.len(), self.address(to))
    }

    /// Writes `numbers` behind those that are under way, and says where.
    fn stage(&self, uploads: &mut Uploads, numbers: &[u32]) -> Result<usize, KernelError> {
        // 16 bytes, as copies on the GPU like it.
        let at = uploads.used.next_multiple_of(4);
        let (at, end) = match at + numbers.len() {
            end if end <= uploads.host.len() => (at, end),
            end => {
                let larger = Uploads::new(&self.context, &self.stream, (2 * end).next_power_of_two())?;
                let Uploads { host, device, mut outgrown, .. } = std::mem::replace(uploads, larger);
                outgrown.push((host, device));
                uploads.outgrown = outgrown;
                (0, numbers.len())
            }
        };
        uploads.host.as_mut_slice().map_err(device)?[at..end].copy_from_slice(numbers);
        uploads.used = end;
        Ok(at)
    }

    #[expect(unsafe_code, reason = "an asynchronous copy")]
    fn copy_staged(&self, uploads: &Uploads, range: std::ops::Range<usize>, to: Address) -> Result<(), KernelError> {
        let from = &uploads.host.as_slice().map_err(device)?[range];
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the host's part is pinned and not written again before the stream has been waited for; the device's part
        // belongs to a slice of at least that length.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(device)
    }

    /// Queues a copy of `bytes` from one place to another.
    #[expect(unsafe_code, reason = "an asynchronous copy")]
    pub(super) fn copy_on_gpu(&self, from: Address, to: Address, bytes: usize) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the callers in this module pass addresses of memory of at least that length, which is freed in the stream's
        // order.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(device)
    }

    /// Waits for all that was queued, and copies the beginning of `from` to `values`.
    ///
    /// # Errors
    /// The first failure since the last time.
    pub(super) fn read(&self, from: &CudaSlice<f32>, values: &mut [f32]) -> Result<(), KernelError> {
        if values.len() > from.len() {
            return Err(KernelError::Device(format!("{} numbers are read of {}", values.len(), from.len())));
        }
        let mut values = values.iter_mut();
        self.fetch_with(&[(self.address(from), values.len())], |words| {
            values.by_ref().zip(words).for_each(|(value, &bits)| *value = f32::from_bits(bits));
        })
    }

    /// Waits for all that was queued, and appends to `words` the numbers of 32 bits that lie at `places`, so many at each.
    ///
    /// # Errors
    /// The first failure since the last time.
    pub(super) fn fetch(&self, places: &[(Address, usize)], words: &mut Vec<u32>) -> Result<(), KernelError> {
        self.fetch_with(places, |fetched| words.extend_from_slice(fetched))
    }

    fn fetch_with(&self, places: &[(Address, usize)], take: impl FnOnce(&[u32])) -> Result<(), KernelError> {
        let len = places.iter().map(|(_, len)| len).sum();
        let mut downloads = self.downloads.borrow_mut();
        let pinned = match downloads.take() {
            Some(pinned) if pinned.len() >= len => pinned,
            _ => pinned(&self.context, len.next_power_of_two())?,
        };
        let pinned = downloads.insert(pinned);
        let copied = self.copy_back(places, pinned);
        let waited = self.stream.synchronize().map_err(device);
        let mut uploads = self.uploads.borrow_mut();
        uploads.used = 0;
        uploads.outgrown.clear();
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        copied.and(waited)?;
        if let Some(profile) = &mut *self.profile.borrow_mut() {
            profile.settle()?;
        }
        take(&pinned.as_slice().map_err(device)?[..len]);
        Ok(())
    }

    #[expect(unsafe_code, reason = "an asynchronous copy")]
    fn copy_back(&self, places: &[(Address, usize)], to: &mut PinnedHostSlice<u32>) -> Result<(), KernelError> {
        let mut to = to.as_mut_slice().map_err(device)?;
        self.context.bind_to_thread().map_err(device)?;
        for &(from, len) in places.iter().filter(|&&(_, len)| len > 0) {
            let (part, rest) = to.split_at_mut(len);
            // SAFETY: the callers in this module say how long their memory is, and the caller here waits for the stream before
            // it looks at the host's.
            unsafe { result::memcpy_dtoh_async(part, from, self.stream.cu_stream()) }.map_err(device)?;
            to = rest;
        }
        Ok(())
    }

    /// Notes when the GPU comes to what is queued from now on.
    pub(super) fn mark(&self) -> Result<Mark, KernelError> {
        self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Mark).map_err(device)
    }

    /// Keeps `failure` until somebody waits.
    pub(super) fn keep(&self, failure: KernelError) {
        let first = self.failure.take().unwrap_or(failure);
        self.failure.set(Some(first));
    }

    /// Queues the function `name` of a program that was loaded; a failure is kept.
    ///
    /// `arguments` are its parameters in order, each in the low bits.
    pub(super) fn launch(&self, name: &'static str, size: Size, arguments: &[u64]) {
        let Size { blocks, .. } = size;
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
    fn try_launch(&self, name: &'static str, size: Size, arguments: &[u64]) -> Result<(), KernelError> {
        let Size { blocks: [x, y, z], threads, shared_bytes } = size;
        self.context.bind_to_thread().map_err(device)?;
        let function = self.function(name, shared_bytes)?;
        let mut parameters = [std::ptr::null_mut(); MOST_ARGUMENTS];
        for (parameter, argument) in parameters.iter_mut().zip(arguments) {
            *parameter = std::ptr::from_ref(argument).cast_mut().cast::<c_void>();
        }
        // SAFETY: the callers in this module pass what the function's source declares, and addresses of memory that lives
        // until the stream has come there: slices are freed in the stream's order.
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

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gpu").field(&self.name()).finish()
    }
}

/// A moment of the GPU.
pub(super) struct Mark(CudaEvent);

impl Mark {
    /// Waits for the moment `end`, and says how long it came after this one.
    pub(super) fn until(&self, end: &Self) -> Result<Duration, KernelError> {
        let milliseconds = self.0.elapsed_ms(&end.0).map_err(device)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

/// Blocks of a launch, threads of a block, and bytes that they share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl Size {
    /// One block to a row.
    pub(super) fn rows(rows: usize, threads: u32) -> Self {
        Self { blocks: [rows as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// One thread to a pair of elements of a row.
    pub(super) fn pairs(rows: usize, pairs: usize) -> Self {
        let elements = Self::elements(pairs);
        Self { blocks: [rows as u32, elements.blocks[0], 1], ..elements }
    }

    /// One thread to an element.
    pub(super) fn elements(elements: usize) -> Self {
        const THREADS: u32 = 256;
        Self { blocks: [elements.div_ceil(THREADS as usize) as u32, 1, 1], threads: THREADS, shared_bytes: 0 }
    }
}

impl Uploads {
    fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, numbers: usize) -> Result<Self, KernelError> {
        let device = stream.alloc_zeros(numbers).map_err(|error| out_of_memory::<u32>(numbers, error))?;
        Ok(Self { host: pinned(context, numbers)?, device, used: 0, outgrown: Vec::new() })
    }
}

#[expect(unsafe_code, reason = "pinned memory comes as it is")]
fn pinned<T: DeviceRepr>(context: &Arc<CudaContext>, elements: usize) -> Result<PinnedHostSlice<T>, KernelError> {
    // SAFETY: `T` is a plain number, of which every bit pattern is one.
    unsafe { context.alloc_pinned_with_flags(elements.max(1), 0) }
        .map_err(|error| out_of_memory::<T>(elements, error))
}

#[expect(unsafe_code, reason = "cudarc asks for a library's file so")]
fn driver_is_present() -> bool {
    // SAFETY: it only looks for a file.
    unsafe { sys::is_culib_present() }
}

/// The version of CUDA, 13.0 being (13, 0), that the driver is made for.
#[expect(unsafe_code, reason = "the driver is a C library")]
fn driver_version() -> Result<(i32, i32), KernelError> {
    let mut version = 0;
    // SAFETY: the place is there to be written.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(device)?;
    Ok((version / 1000, version % 1000 / 10))
}

fn text(error: program::CompileError) -> KernelError {
    KernelError::Device(error.to_string())
}

#[expect(unsafe_code, reason = "events would cost as much as small kernels")]
fn track_no_events(context: &CudaContext) {
    // SAFETY: all that is allocated here is used and freed on one stream.
    unsafe { context.disable_event_tracking() };
}

pub(super) fn device(error: DriverError) -> KernelError {
    KernelError::Device(error.to_string())
}

fn out_of_memory<T>(elements: usize, error: DriverError) -> KernelError {
    match error.0 {
        sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
            KernelError::OutOfMemory { elements: elements.saturating_mul(size_of::<T>()).div_ceil(4) }
        }
        _ => device(error),
    }
}
