//! What an observer reads and replaces while a step is held between two launches.

use super::{CudaExecutable, CudaState};
use crate::driver::Param;
use moe_run_graph::ir::{DType, StateId, StepSizes, ValueId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, TensorData, ValueAccess};
use std::ops::Range;

/// A held step's values.
pub(super) struct Access<'a> {
    pub executable: &'a CudaExecutable,
    pub decode: bool,
    pub state: &'a CudaState,
    pub sizes: StepSizes,
}

impl ValueAccess for Access<'_> {
    fn sizes(&self) -> StepSizes {
        self.sizes
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        self.executable.read_value(self.decode, value, self.sizes)
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        let exe = self.executable;
        let wrong = |detail: String| BackendError::Value { value: value.to_string(), detail };
        let declared = exe.class(self.decode).plan.graph.value(value);
        let wanted = declared.shape.resolve(self.sizes);
        if tensor.shape != wanted {
            return Err(wrong(format!("shape {:?}, wanted {wanted:?}", tensor.shape)));
        }
        let words: Vec<u32> = match (&tensor.data, declared.dtype) {
            (TensorData::U32(data), DType::U32) => data.clone(),
            (TensorData::F32(data), DType::F32) => data.iter().map(|v| v.to_bits()).collect(),
            (_, wanted) => return Err(wrong(format!("elements of another type, wanted {wanted:?}"))),
        };
        let place = exe.values(self.decode).place(value, self.sizes);
        let Some((Param::Memory { address, .. }, bytes)) = place else {
            return Err(wrong("the plan does not store it".into()));
        };
        if words.len() * 4 != bytes {
            return Err(wrong(format!("{} elements, wanted {}", words.len(), bytes / 4)));
        }
        exe.driver.upload(address, bytemuck::cast_slice(&words)).map_err(|e| exe.failed(e))
    }

    fn read_state(&mut self, state: StateId, slots: Range<usize>) -> Result<Vec<f32>, BackendError> {
        self.state.read(state, slots)
    }

    fn write_state(&mut self, state: StateId, first_slot: usize, rows: &[f32]) -> Result<(), BackendError> {
        self.state.write(state, first_slot, rows)
    }
}
