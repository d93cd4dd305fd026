// Which thread of its pool the calling thread is.
#pragma once

namespace sage {

// 1 .. size() - 1 in a worker of a ThreadPool, 0 in every other thread: the callers.
int WorkerIndex();

}  // namespace sage
