//! Compiles the stand-in for NVIDIA's driver library (stand-in/) with the compiler of the kernels' host harness, and links the
//! harness's kernels into it. `MOE_STAND_IN` is the folder that holds it, for `LD_LIBRARY_PATH`; empty where it could not be
//! made, and then `MOE_STAND_IN_MISSING` says why.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SOURCES: [&str; 4] = ["ptx.cpp", "device.cpp", "stream.cpp", "launch.cpp"];

fn main() {
    println!("cargo::rerun-if-changed=stand-in");
    println!("cargo::rerun-if-changed=../kernels/host/host.h");
    let (folder, why) = match build() {
        Ok(folder) => (folder.display().to_string(), String::new()),
        Err(why) => (String::new(), why),
    };
    println!("cargo::rustc-env=MOE_STAND_IN={folder}");
    println!("cargo::rustc-env=MOE_STAND_IN_MISSING={}", why.replace('\n', " "));
}

fn build() -> Result<PathBuf, String> {
    let var = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    if var("CARGO_CFG_TARGET_OS")? != "linux" {
        return Err("it needs Linux".into());
    }
    if var("TARGET")? != var("HOST")? {
        return Err("cross-compiling".into());
    }
    // Told by the build script of moe-run-backends, where it could compile the kernels.
    let (Ok(library), Ok(compiler)) =
        (env::var("DEP_MOE_RUN_KERNELS_LIBRARY"), env::var("DEP_MOE_RUN_KERNELS_COMPILER"))
    else {
        return Err("this build has no CUDA host harness".into());
    };
    println!("cargo::rerun-if-changed={library}");
    let folder = PathBuf::from(var("OUT_DIR")?).join("driver");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]);
    // Only the driver's own functions are seen from outside: the program has the harness's too.
    command.args([
        "-fvisibility=hidden",
        "-Wl,-Bsymbolic",
        "-Wl,--exclude-libs,ALL",
        "-Wl,-soname,libcuda.so.1",
    ]);
    command.args(["-I", "../kernels"]).args(SOURCES.map(|name| Path::new("stand-in").join(name)));
    let made = folder.join("libcuda.so.1");
    let output = command.arg(&library).args(["-lm", "-lpthread", "-o"]).arg(&made).output();
    let output = output.map_err(|e| format!("{compiler}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{compiler}: {}: {said}", output.status));
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    // A machine with NVIDIA's toolkit may have the other name: the stand-in must come first under both.
    let other = folder.join("libcuda.so");
    fs::copy(&made, &other).map_err(|e| format!("{}: {e}", other.display()))?;
    Ok(folder)
}
