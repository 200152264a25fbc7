//! Reads logits on a GPU: only the requested views are copied to the host.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use cudarc::driver::CudaSlice;

use super::driver::DeviceAddress;
use super::gpu::{GpuDevice, LaunchSize};
use super::logits_answers::{AnswerScratch, LogitsAnswers};
use super::logits_questions::LogitsQuestions;
use crate::kernels::KernelError;
use crate::kernels::cpu::CpuKernels;
use crate::logits_view::{BufferPool, DeviceLogits, KeptLogits, LogitsTask, PooledBuffer};

/// Reused memory for questions and answers, and the threads that finish them.
#[derive(Debug)]
pub(super) struct LogitsReader {
    host: CpuKernels,
    questions: LogitsQuestions,
    scratch: Option<CudaSlice<u32>>,
    answers: Option<CudaSlice<u32>>,
    /// The answers, followed by the rows that the host must read.
    words: Vec<u32>,
    /// Offset of each task's row in `words`.
    rows: Vec<Option<usize>>,
    spare: BufferPool<DeviceLogits>,
    kept: Vec<Option<PooledBuffer<DeviceLogits>>>,
}

thread_local! {
    static ANSWER_SCRATCH: RefCell<AnswerScratch> = RefCell::default();
    static ROW: RefCell<Vec<f32>> = RefCell::default();
}

impl LogitsReader {
    /// Finishes answers on the threads of `host`.
    pub(super) fn new(host: CpuKernels) -> Self {
        Self {
            host,
            questions: LogitsQuestions::default(),
            scratch: None,
            answers: None,
            words: Vec::new(),
            rows: Vec::new(),
            spare: BufferPool::default(),
            kept: Vec::new(),
        }
    }

    pub(super) fn host(&self) -> &CpuKernels {
        &self.host
    }

    /// Runs `tasks` on the rows of `vocabulary` logits at `logits`. Returns how long that took.
    pub(super) fn read(
        &mut self,
        gpu: &GpuDevice,
        logits: DeviceAddress,
        vocabulary: usize,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        let row_at = |row: usize| logits + 4 * (row * vocabulary) as u64;
        self.questions.ask(vocabulary, tasks);
        let began = gpu.mark()?;
        self.kept.clear();
        for (row, task) in tasks.iter().enumerate() {
            let kept = task.keep.then(|| self.keep(gpu, row_at(row), vocabulary)).transpose()?;
            self.kept.push(kept);
        }
        let answers = self.launch(gpu, logits, tasks.len())?;
        let ended = gpu.mark()?;
        let first = if self.questions.is_empty() { 0 } else { self.questions.first_words() };
        self.words.clear();
        gpu.fetch(&[(answers, first)], &mut self.words)?;
        let (on_gpu, began) = (began.until(&ended)?, Instant::now());
        self.fetch_rest(gpu, answers, vocabulary, row_at)?;
        self.finish(vocabulary, tasks);
        for (task, kept) in tasks.iter_mut().zip(self.kept.drain(..)) {
            task.found.kept = kept.filter(|_| task.found.invalid.is_none()).map(KeptLogits::on_gpu);
        }
        Ok(on_gpu + began.elapsed())
    }

    fn keep(
        &self,
        gpu: &GpuDevice,
        row: DeviceAddress,
        vocabulary: usize,
    ) -> Result<PooledBuffer<DeviceLogits>, KernelError> {
        let mut kept = self.spare.lend();
        let memory = match kept.take() {
            // Exactly as long as the row: a later read takes its length for the vocabulary.
            Some(memory) if memory.len() == vocabulary => memory,
            _ => gpu.allocate(vocabulary)?,
        };
        gpu.copy_on_gpu(row, gpu.address(kept.insert(memory)), 4 * vocabulary)?;
        Ok(kept)
    }

    /// Queues the kernels and returns the address of their answers.
    fn launch(&mut self, gpu: &GpuDevice, logits: DeviceAddress, rows: usize) -> Result<DeviceAddress, KernelError> {
        let Self { questions, scratch, answers, .. } = self;
        if questions.is_empty() {
            return Ok(0);
        }
        let scratch = gpu.address(reserve(gpu, scratch, questions.scratch_words())?);
        let answers = gpu.address(reserve(gpu, answers, questions.answer_words())?);
        let step = gpu.upload(questions.input([logits, scratch, answers]))?;
        let (needs, segments) = (questions.needs(), questions.segments());
        let (tasks, draws) = questions.tasks_and_draws();
        let launch = |name, is_needed, [x, y]: [usize; 2], threads| {
            if is_needed {
                gpu.launch(name, LaunchSize { blocks: [x as u32, y as u32, 1], threads, shared_bytes: 0 }, &[step]);
            }
        };
        launch("draw_maxima", true, [segments, rows], 256);
        launch("draw_weights", needs.totals, [segments, tasks], 256);
        launch("draw_probabilities", needs.probabilities, [segments, tasks], 256);
        launch("draw_thresholds", needs.thresholds, [tasks, 1], 1024);
        launch("draw_candidates", needs.candidates, [segments, tasks], 256);
        launch("draw_results", true, [tasks, 1], 256);
        launch("draw_tokens", needs.probabilities, [draws, 1], 256);
        Ok(answers)
    }

    /// Fetches the candidates that the first answers announce, and the rows for the host.
    fn fetch_rest(
        &mut self,
        gpu: &GpuDevice,
        answers: DeviceAddress,
        vocabulary: usize,
        row_at: impl Fn(usize) -> DeviceAddress,
    ) -> Result<(), KernelError> {
        let Self { questions, words, rows, .. } = self;
        let (mut places, mut end) = (Vec::new(), words.len());
        if !questions.is_empty() {
            let wanted = questions.words_of_interest(words);
            if wanted > end {
                places.push((answers + 4 * end as u64, wanted - end));
                end = wanted;
            }
        }
        rows.clear();
        let known = LogitsAnswers { questions, words };
        for row in 0..questions.rows.len() {
            let is_for_host = known.is_for_host(row);
            rows.push(is_for_host.then_some(end));
            if is_for_host {
                places.push((row_at(row), vocabulary));
                end += vocabulary;
            }
        }
        if places.is_empty() { Ok(()) } else { gpu.fetch(&places, words) }
    }

    fn finish(&self, vocabulary: usize, tasks: &mut [LogitsTask<'_>]) {
        let Self { host, questions, words, rows, .. } = self;
        let answers = LogitsAnswers { questions, words };
        host.each(tasks, |row, task| match rows[row] {
            Some(at) => ROW.with_borrow_mut(|logits| {
                logits.clear();
                logits.extend(words[at..at + vocabulary].iter().map(|&bits| f32::from_bits(bits)));
                LogitsTask { keep: false, found: &mut *task.found, ..*task }.read(logits, &BufferPool::default());
            }),
            None => ANSWER_SCRATCH.with_borrow_mut(|scratch| answers.finish(row, task, scratch)),
        });
    }
}

fn reserve<'a>(
    gpu: &GpuDevice,
    memory: &'a mut Option<CudaSlice<u32>>,
    words: usize,
) -> Result<&'a CudaSlice<u32>, KernelError> {
    let known = match memory.take() {
        Some(known) if known.len() >= words => known,
        _ => gpu.allocate(words.next_power_of_two())?,
    };
    Ok(memory.insert(known))
}
