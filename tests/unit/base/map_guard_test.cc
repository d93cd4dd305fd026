// Reading a mapped file that was cut: zeros instead of the end of the process, and everybody who works on it is told.
#include "engine/base/map_guard.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

constexpr size_t kPage = 4096, kPages = 64;

class MapGuardTest : public ::testing::Test {
 protected:
  MapGuardTest() {
    std::string name = (std::filesystem::temp_directory_path() / "sage_map_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~MapGuardTest() override { std::filesystem::remove_all(folder_); }

  std::shared_ptr<MappedFile> Map(const std::string& name, size_t pages = kPages) const {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << std::string(kPage * pages, 'x');
    return *MappedFile::Open(path);
  }
  static int64_t Sum(const MappedFile& file) {
    int64_t sum = 0;
    for (size_t i = 0; i < file.size(); ++i) sum += file.data()[i];
    return sum;
  }
  std::string folder_;
};

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

TEST_F(MapGuardTest, WhatWasCutReadsAsZerosAndIsTold) {
  const MapWatch folder({folder_}), file({folder_ + "/a"}), other({folder_ + "/b", folder_ + "/a.more", ""});
  const auto a = Map("a");
  ASSERT_EQ(Sum(*a), int64_t{'x'} * kPage * kPages);
  ASSERT_TRUE(file.Check().ok());
  ASSERT_EQ(truncate((folder_ + "/a").c_str(), 10 * kPage), 0);
  EXPECT_EQ(a->data()[9 * kPage], 'x');  // what is left is still the file
  EXPECT_TRUE(file.Check().ok());
  EXPECT_EQ(Sum(*a), int64_t{'x'} * kPage * 10);
  const absl::Status status = file.Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(status), "MODEL_FILE_CHANGED");
  EXPECT_EQ(GetErrorReason(status).metadata.at("file"), folder_ + "/a");
  EXPECT_EQ(ReasonOf(folder.Check()), "MODEL_FILE_CHANGED");
  EXPECT_TRUE(other.Check().ok()) << other.Check();
}

TEST_F(MapGuardTest, IsToldAfterTheMapWentAndToNobodyWhoComesLater) {
  const MapWatch watch({folder_});
  {
    const auto a = Map("a");
    ASSERT_EQ(truncate((folder_ + "/a").c_str(), 0), 0);
    EXPECT_EQ(Sum(*a), 0);
  }
  EXPECT_EQ(ReasonOf(watch.Check()), "MODEL_FILE_CHANGED");
  const MapWatch later({folder_});
  const auto again = Map("a");
  EXPECT_EQ(Sum(*again), int64_t{'x'} * kPage * kPages);
  EXPECT_TRUE(later.Check().ok()) << later.Check();
}

TEST_F(MapGuardTest, ManyMapsAndManyThreads) {
  std::vector<std::shared_ptr<MappedFile>> maps;
  for (int i = 0; i < 600; ++i) maps.push_back(Map(std::to_string(i), 2));  // more than the registry begins with
  const MapWatch last({folder_ + "/599"}), first({folder_ + "/0"});
  ASSERT_EQ(truncate((folder_ + "/599").c_str(), kPage / 2), 0);
  std::vector<std::thread> readers;
  std::vector<int64_t> sums(4);
  for (size_t t = 0; t < sums.size(); ++t) readers.emplace_back([&, t] { sums[t] = Sum(*maps.back()); });
  for (std::thread& reader : readers) reader.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, int64_t{'x'} * kPage / 2);
  EXPECT_EQ(ReasonOf(last.Check()), "MODEL_FILE_CHANGED");
  EXPECT_TRUE(first.Check().ok());
}

// A SIGBUS that is none of ours still ends the process.
TEST_F(MapGuardTest, OtherFaultsEndTheProcess) {
  const auto a = Map("a");
  EXPECT_DEATH(raise(SIGBUS), "");
}

}  // namespace
}  // namespace sage
