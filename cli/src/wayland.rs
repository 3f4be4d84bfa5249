//! Keeps a line of the graphics drivers off standard error. Mesa's device selection layer asks the Wayland compositor for its
//! GPU whenever Vulkan lists devices, and libwayland prints "error: XDG_RUNTIME_DIR is invalid or not set in the environment."
//! where it cannot tell where a compositor would be: under cron, su or sudo, and in containers.
//!
//! There is then none to be asked, and this program opens no window. `WAYLAND_DISPLAY` is made a path that is no socket, so
//! that the layer finds none and says nothing; nothing else reads that variable. The directory itself stays unset, for it has
//! other readers.

#[cfg(target_os = "linux")]
mod linux {
    use std::{env, path::Path};

    /// A path that is there and is no compositor's socket.
    const NO_COMPOSITOR: &str = "/dev/null";

    fn is_path(variable: &str) -> bool {
        env::var_os(variable).is_some_and(|value| Path::new(&value).is_absolute())
    }

    fn has_one_thread() -> bool {
        std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
    }

    /// To be called before anything else. Where other threads run already, nothing is done.
    pub fn look_for_no_compositor() {
        let is_named = is_path("XDG_RUNTIME_DIR")
            || is_path("WAYLAND_DISPLAY")
            || env::var_os("WAYLAND_SOCKET").is_some();
        if !is_named && has_one_thread() {
            // SAFETY: this is the process's only thread, so nothing else reads or writes the environment meanwhile.
            unsafe { env::set_var("WAYLAND_DISPLAY", NO_COMPOSITOR) };
        }
    }
}

#[cfg(target_os = "linux")]
pub use linux::look_for_no_compositor;

/// Other systems have no Wayland that prints.
#[cfg(not(target_os = "linux"))]
pub fn look_for_no_compositor() {}
