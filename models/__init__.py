"""The networks of the suite: read registry first, then resnet; efficientnet_lite is a backbone's."""
