// Names to paths: what is found, and that nothing leads outside.
#include "server/model_paths.h"

#include <filesystem>
#include <fstream>

#include "engine/base/file.h"
#include "engine/base/read_roots.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::server {
namespace {

namespace fs = std::filesystem;

class ModelPathsTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    top_ = fs::canonical(testing::TempDir()) / ("model_paths_" + name);
    fs::remove_all(top_);
    fs::create_directories(top_ / "root/org/model");
    fs::create_directories(top_ / "root/models--org--cached/snapshots/abc");
    fs::create_directories(top_ / "outside/secret");
    std::ofstream(top_ / "outside/file") << "x";
    fs::create_directory_symlink(top_ / "outside/secret", top_ / "root/link");
    auto paths = ModelPaths::Create((top_ / "data").string(), {(top_ / "root").string()});
    ASSERT_TRUE(paths.ok()) << paths.status();
    paths_ = *paths;
    fs::create_directories(top_ / "data/artifacts/made");
  }
  void TearDown() override { fs::remove_all(top_); }
  fs::path top_;
  ModelPaths paths_;
};

TEST_F(ModelPathsTest, FindsModels) {
  EXPECT_EQ(*paths_.ResolveModel("org/model"), (top_ / "root/org/model").string());
  EXPECT_EQ(*paths_.ResolveModel((top_ / "root/org/model").string()), (top_ / "root/org/model").string());
  EXPECT_EQ(*paths_.ResolveModel("made"), (top_ / "data/artifacts/made").string());
  EXPECT_EQ(*paths_.ResolveModel("org/cached"), (top_ / "root/models--org--cached/snapshots/abc").string());
  EXPECT_EQ(*paths_.ResolveModel("org/../org/model"), (top_ / "root/org/model").string());
}

// A wrong name is told by the field that held it.
TEST_F(ModelPathsTest, NamesTheField) {
  const absl::Status empty = paths_.ResolveModel("", "artifact").status();
  EXPECT_EQ(empty.message(), "artifact: must be named");
  EXPECT_EQ(GetErrorReason(empty).metadata["field"], "artifact");
  EXPECT_EQ(paths_.ResolveModel("gone", "reference").status().message().substr(0, 17), "reference: \"gone\"");
}

TEST_F(ModelPathsTest, RefusesWhatLeadsOutside) {
  for (const std::string& name :
       {std::string("../outside/secret"), std::string("link"), std::string("/etc"), (top_ / "outside/secret").string(),
        std::string("org/../../outside/secret"), std::string("../../../../../../etc"), (top_ / "rootless").string()}) {
    auto path = paths_.ResolveModel(name);
    ASSERT_FALSE(path.ok()) << name;
    EXPECT_EQ(path.status().code(), absl::StatusCode::kPermissionDenied) << name << " " << path.status();
    EXPECT_EQ(GetErrorReason(path.status()).reason, "PATH_OUTSIDE_ROOTS");
  }
  EXPECT_EQ(paths_.ResolveModel("missing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(paths_.ResolveModel("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(paths_.ResolveModel(std::string("a\0b", 3)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ModelPathsTest, LinksInsideAModelStayInside) {
  fs::create_directories(top_ / "root/models--org--cached/blobs");
  std::ofstream(top_ / "root/models--org--cached/blobs/1") << "x";
  fs::create_symlink("../../blobs/1", top_ / "root/models--org--cached/snapshots/abc/config.json");
  EXPECT_TRUE(paths_.ResolveModel("org/cached").ok());
  fs::create_symlink(top_ / "outside/file", top_ / "root/org/model/model.safetensors");
  const auto leaves = paths_.ResolveModel("org/model");
  ASSERT_EQ(leaves.status().code(), absl::StatusCode::kPermissionDenied) << leaves.status();
  EXPECT_EQ(GetErrorReason(leaves.status()).reason, "PATH_OUTSIDE_ROOTS");
  EXPECT_NE(leaves.status().message().find("model.safetensors"), std::string::npos);
  fs::remove(top_ / "root/org/model/model.safetensors");
  fs::create_symlink("missing", top_ / "root/org/model/dangling");  // nothing is there to be read
  EXPECT_TRUE(paths_.ResolveModel("org/model").ok());
}

// A folder that becomes a link after its name was checked: what is opened then is asked where it lies.
TEST_F(ModelPathsTest, NothingIsReadThroughALinkThatAppearsLater) {
  const fs::path model = top_ / "root/org/model", other = top_ / "root2/model";
  fs::create_directories(other);
  for (const fs::path& folder : {model, other, top_ / "outside/secret"}) std::ofstream(folder / "config.json") << "{}";
  ConfineReads({(top_ / "root").string(), (top_ / "root2").string()});
  const std::string config = *paths_.ResolveModel("org/model") + "/config.json";
  EXPECT_TRUE(ReadFile(config).ok());
  const auto swap = [&](const fs::path& target) {
    fs::remove_all(model);
    fs::create_directory_symlink(target, model);
  };
  swap(top_ / "outside/secret");
  EXPECT_EQ(GetErrorReason(ReadFile(config).status()).reason, "PATH_OUTSIDE_ROOTS");
  EXPECT_EQ(GetErrorReason(MappedFile::Open(config).status()).reason, "PATH_OUTSIDE_ROOTS");
  EXPECT_TRUE(ReadFile((top_ / "outside/secret/config.json").string()).ok());  // named as it is: no model's path
  swap(other);
  EXPECT_TRUE(ReadFile(config).ok());
}

TEST_F(ModelPathsTest, NewArtifacts) {
  EXPECT_EQ(*paths_.NewArtifact("fresh"), (top_ / "data/artifacts/fresh").string());
  EXPECT_EQ(*paths_.NewArtifact((top_ / "data/else").string()), (top_ / "data/else").string());
  EXPECT_EQ(paths_.NewArtifact("made").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*paths_.NewArtifact("fresh//"), (top_ / "data/artifacts/fresh").string());
  for (const char* outside : {"../x", "a/../../x", "../artifacts/x"}) {
    EXPECT_EQ(paths_.NewArtifact(outside).status().code(), absl::StatusCode::kPermissionDenied) << outside;
  }
  EXPECT_EQ(paths_.NewArtifact("../../x").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(paths_.NewArtifact("/root-of-all").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(paths_.NewArtifact(".hidden").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(paths_.ResolveArtifact("../artifacts/made").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace sage::server
