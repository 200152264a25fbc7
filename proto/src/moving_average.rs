//! An average that follows the last measurements.

/// The mean of the first measurements, then an exponential moving average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovingAverage {
    mean: f64,
    /// Number of measurements that the mean stands for.
    weight: f64,
    most_weight: f64,
}

impl MovingAverage {
    /// An average over about the last `measurements`, at least 1.
    #[must_use]
    pub const fn over(measurements: f64) -> Self {
        Self { mean: 0.0, weight: 0.0, most_weight: measurements }
    }

    /// Begins with an estimate that counts as so many measurements.
    #[must_use]
    pub const fn with_prior(self, mean: f64, measurements: f64) -> Self {
        Self { mean, weight: measurements, ..self }
    }

    /// Adds a measurement.
    pub fn add(&mut self, measured: f64) {
        self.weight = (self.weight + 1.0).min(self.most_weight);
        self.mean += (measured - self.mean) / self.weight;
    }

    /// Adds a measurement, which counts as at most `most_ratio` times the average before it: a single outlier moves
    /// little.
    pub fn add_capped(&mut self, measured: f64, most_ratio: f64) {
        self.add(self.mean().map_or(measured, |mean| measured.min(most_ratio * mean)));
    }

    /// The average; `None` before the first measurement.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then_some(self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_mean_at_first_and_forgets_later() {
        let mut average = MovingAverage::over(4.0);
        assert_eq!(average.mean(), None);
        for (measured, mean) in [(1.0, 1.0), (3.0, 2.0), (5.0, 3.0), (7.0, 4.0), (8.0, 5.0), (1.0, 4.0)] {
            average.add(measured);
            assert_eq!(average.mean(), Some(mean));
        }
        average.add_capped(1000.0, 2.0);
        assert_eq!(average.mean(), Some(5.0));
    }

    #[test]
    fn a_prior_counts_as_measurements() {
        let mut average = MovingAverage::over(8.0).with_prior(0.5, 3.0);
        assert_eq!(average.mean(), Some(0.5));
        average.add(1.5);
        assert_eq!(average.mean(), Some(0.75));
    }
}
