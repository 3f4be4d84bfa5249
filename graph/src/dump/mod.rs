//! Between stages 4 and 5, for people: Graph or Plan → text, JSON, DOT or one HTML page.
mod kernel;

pub use kernel::KernelInfo;
